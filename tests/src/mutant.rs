//! Runs of deliberately broken code, which may panic.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

thread_local! {
    /// Whether this thread runs a mutant.
    static IS_IN_MUTANT: Cell<bool> = const { Cell::new(false) };
}

/// What comes of it; None where it panics, of which nobody is told. Panics of other threads, and before and after it, are
/// told as ever.
pub fn run<T>(mutant: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let tell = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_IN_MUTANT.get() {
                tell(panic);
            }
        }));
    });
    IS_IN_MUTANT.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(mutant));
    IS_IN_MUTANT.set(false);
    outcome.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutant_that_panics_is_seen_and_nothing_else_falls_silent() {
        assert_eq!(run(|| IS_IN_MUTANT.get()), Some(true));
        assert_eq!(run(|| -> u8 { panic!("by design") }), None);
        assert!(!IS_IN_MUTANT.get());
    }
}
