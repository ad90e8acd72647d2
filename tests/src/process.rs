//! A program that runs beside a test: its log is collected, and it ends with the test.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::lab::wait_until;

/// How long a program may take to end after SIGTERM before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 25;

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Log>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Process {
    /// Starts `command`, both of whose outputs become the log.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name} ({:?})", command.get_program()))?;
        let log = Arc::new(Log::default());
        let mut readers = Vec::new();
        if let Some(output) = child.stdout.take() {
            readers.push(collect(output, Arc::clone(&log)));
        }
        if let Some(output) = child.stderr.take() {
            readers.push(collect(output, Arc::clone(&log)));
        }
        Ok(Self { name: name.to_owned(), child, log, readers })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The log so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.log.lines().clone()
    }

    /// The last lines of the log, headed by the program's name.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let lines = self.log.lines();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        format!("last {} log lines of {}:\n  {}", tail.len(), self.name, tail.join("\n  "))
    }

    /// Waits until the log, from line `from` on, satisfies `enough`.
    pub fn wait_log<T>(
        &self,
        what: &str,
        from: usize,
        limit: Duration,
        mut enough: impl FnMut(&[String]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut lines = self.log.lines();
        loop {
            if let Some(value) = enough(lines.get(from..).unwrap_or_default()) {
                return Ok(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                bail!("waited {} s for {what}\n{}", limit.as_secs(), self.log_tail());
            }
            lines = self.log.grown.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Fails when the program has ended.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended early ({status})\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// Sends SIGTERM and waits; what does not end in time is killed, and is an error.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        let waited =
            wait_until(&format!("{} to end after SIGTERM", self.name), STOP_LIMIT, || Ok(self.child.try_wait()?));
        if waited.is_err() {
            self.child.kill()?;
            self.child.wait()?;
        }
        waited.with_context(|| self.log_tail())
    }

    /// Waits for the program to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait_until(&format!("{} to end", self.name), limit, || Ok(self.child.try_wait()?))
            .with_context(|| self.log_tail())
    }

    /// Everything that a program that has ended has written.
    #[must_use]
    pub fn wait_output(&mut self) -> String {
        for reader in self.readers.drain(..) {
            // A reader ends with the program's output, and does not panic.
            let _ = reader.join();
        }
        self.lines().join("\n")
    }

    /// Sends a signal, such as SIGHUP; one to a program that has ended is none.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = libc::pid_t::try_from(self.child.id()).context("a process id fits its type")?;
        // SAFETY: kill has no memory effects; the child is not reaped yet, so the id is still its own.
        if unsafe { libc::kill(pid, signal) } != 0 {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("cannot signal {}", self.name));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors have no one to go to; a child that is gone already is the usual one.
        let _ = self.stop();
    }
}

impl Log {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn collect(output: impl Read + Send + 'static, log: Arc<Log>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        // Programs log bytes; a line that is not UTF-8 is still a line.
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            log.lines().push(text);
            log.grown.notify_all();
        }
    })
}
