//! Signals that wait while the kernel checks programs.

/// While it lives, the calling thread takes no signals; those that come meanwhile are taken when it goes. A signal that
/// is pending makes the verifier give up with EAGAIN (kernel/bpf/verifier.c, `do_check`), and the loader then tries again with
/// a log of every instruction, which takes many times as long.
pub struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    /// Blocks all signals that can be blocked.
    pub fn new() -> Self {
        // SAFETY: plain bit sets, for which zero is a value; both live across the calls, which cannot fail for them.
        unsafe {
            let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set that was in force before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}
