//! What the test runner prints, summed up for whoever reads only the end.

/// The sums of the runner's closing lines, and what it said of the tests that failed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Results {
    pub binaries: u32,
    pub passed: u32,
    pub failed: u32,
    pub ignored: u32,
    /// Lines from each binary whose tests failed, but for empty ones.
    pub failures: Vec<String>,
    is_failing: bool,
}

impl Results {
    /// Takes the next line of what `cargo test` prints.
    pub fn add(&mut self, line: &str) {
        if let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) {
            self.is_failing = false;
            self.count(counts);
        } else if line == "failures:" {
            // It comes again, before the bare names.
            self.is_failing = true;
        } else if self.is_failing && !line.is_empty() {
            self.failures.push(line.to_owned());
        }
    }

    /// From `3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`.
    fn count(&mut self, counts: &str) {
        self.binaries += 1;
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let number = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Results;

    fn of(lines: &[&str]) -> Results {
        let mut results = Results::default();
        lines.iter().for_each(|line| results.add(line));
        results
    }

    #[test]
    fn closing_lines_are_summed() {
        let results = of(&[
            "running 4 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1.20s",
        ]);
        assert_eq!(results, Results { binaries: 2, passed: 4, failed: 2, ignored: 1, ..Results::default() });
    }

    #[test]
    fn what_was_said_of_failures_is_kept_and_nothing_else() {
        let results = of(&[
            "test a ... FAILED",
            "",
            "failures:",
            "",
            "---- a stdout ----",
            "Error: no route",
            "",
            "failures:",
            "    a",
            "",
            "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
            "test b ... ok",
        ]);
        assert_eq!(results.failures, ["---- a stdout ----", "Error: no route", "    a"]);
    }
}
