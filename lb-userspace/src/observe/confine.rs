//! The thread that strangers talk to has no privileges.

use std::io;

use tracing::warn;

/// `_LINUX_CAPABILITY_VERSION_3` (include/uapi/linux/capability.h).
const VERSION: u32 = 0x2008_0522;
/// `CAP_NET_BIND_SERVICE`: the address may have a port below 1024.
const KEPT: u32 = 1 << 10;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Takes this thread's capabilities away; those that it starts later have none either. What it then reads are its user's own
/// files.
pub(super) fn drop_privileges() {
    if let Err(error) = try_drop() {
        warn!(%error, "the thread that serves HTTP keeps its capabilities");
    }
}

fn try_drop() -> io::Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: both structures are of the version that the header names and live across the call.
    if unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut data) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let kept = data[0].permitted & KEPT;
    let data = [Data { effective: kept, permitted: kept, inheritable: 0 }, Data::default()];
    // SAFETY: as above.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const data) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_and_what_it_starts_can_bind_a_port_at_most() {
        let capabilities = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let sets = status.lines().filter(|line| line.starts_with("CapEff:") || line.starts_with("CapPrm:"));
            sets.map(|line| u64::from_str_radix(line[7..].trim(), 16).unwrap()).fold(0, |all, set| all | set)
        };
        let (own, started) = std::thread::spawn(move || {
            drop_privileges();
            (capabilities(), std::thread::spawn(capabilities).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!((own & !u64::from(KEPT), started & !u64::from(KEPT)), (0, 0));
    }
}
