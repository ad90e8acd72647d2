//! The agent's state in one line.

use super::Engine;

impl Engine {
    /// For whoever shows one line of each service.
    pub(super) fn summary(&self) -> String {
        let ready = self.findings.values().filter(|finding| finding.rung.is_some()).count();
        summary(
            self.snapshot.services.len(),
            (ready, self.findings.len()),
            self.waiting.as_deref(),
            self.refusal.as_deref(),
        )
    }
}

fn summary(services: usize, (ready, pods): (usize, usize), waiting: Option<&str>, refusal: Option<&str>) -> String {
    let mut text = format!("services: {services}, pods reached: {ready} of {pods}");
    for (what, why) in [("waiting", waiting), ("configuration refused", refusal)] {
        if let Some(first) = why.and_then(|why| why.lines().next()) {
            text += &format!("; {what}: {first}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_are_named_by_their_first_line() {
        assert_eq!(summary(2, (3, 4), None, None), "services: 2, pods reached: 3 of 4");
        assert_eq!(
            summary(0, (0, 0), Some("uplink is gone\nand more"), Some("f:1: no")),
            "services: 0, pods reached: 0 of 0; waiting: uplink is gone; configuration refused: f:1: no"
        );
    }
}
