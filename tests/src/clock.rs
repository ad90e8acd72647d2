//! Other clocks for one program, while this machine's stay as they are.

use std::{io, os::unix::process::CommandExt as _, process::Command, time::Duration};

/// Further than anything that is recorded lives.
pub const HOURS: Duration = Duration::from_secs(10 * 3600);

/// Has a program begin with CLOCK_MONOTONIC and CLOCK_BOOTTIME so far ahead, in a time namespace of its own
/// (time_namespaces(7), Linux 5.6). There is none for the wall clock.
#[must_use]
pub fn ahead(mut command: Command, by: Duration) -> Command {
    let offsets = format!("monotonic {0} 0\nboottime {0} 0\n", by.as_secs());
    // SAFETY: all calls are async-signal-safe and get valid pointers; nothing is allocated and no lock taken after the
    // fork.
    unsafe { command.pre_exec(move || enter(offsets.as_bytes())) };
    command
}

fn enter(offsets: &[u8]) -> io::Result<()> {
    let checked = |result: i64| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) };
    let (file, namespace) = (c"/proc/self/timens_offsets", c"/proc/self/ns/time_for_children");
    // SAFETY: the paths end with zero, and the buffer has the length that is said; all live across the calls.
    unsafe {
        checked(libc::unshare(libc::CLONE_NEWTIME).into())?;
        let file = checked(libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC).into())?;
        checked(libc::write(file, offsets.as_ptr().cast(), offsets.len()) as i64)?;
        // Not its children's alone: execve takes a process there since Linux 6.1 only.
        let namespace = checked(libc::open(namespace.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC).into())?;
        checked(libc::setns(namespace, libc::CLONE_NEWTIME).into()).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, Result, ensure};

    use super::*;
    use crate::lab::privileged;

    fn uptime(command: &mut Command) -> Result<Duration> {
        let output = command.arg("/proc/uptime").output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok(Duration::from_secs_f64(text.split(' ').next().context("no number")?.parse()?))
    }

    #[test]
    fn a_programs_clock_is_ahead_of_this_machines() -> Result<()> {
        if !privileged("clock") {
            return Ok(());
        }
        let here = uptime(&mut Command::new("cat"))?;
        let there = uptime(&mut ahead(Command::new("cat"), HOURS))?;
        ensure!(there >= here + HOURS, "{there:?} there, {here:?} here");
        Ok(())
    }
}
