//! Privileged: makes network namespaces and sends packets between them.
//!
//! The lab itself: addresses reach each other, nothing is left behind.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use lb_tests::lab::{Family, Lab, Options, PodLink, privileged, wait_until};

fn pods_answer(lab: &Lab) -> Result<()> {
    for pod in &lab.pods {
        for family in Family::BOTH {
            wait_until(&format!("{} to answer over {family:?}", pod.name()), Duration::from_secs(10), || {
                Ok(pod.answers(&lab.element, family).then_some(()))
            })?;
        }
    }
    Ok(())
}

#[test]
fn pods_are_reached_from_the_element_however_they_are_linked() -> Result<()> {
    if !privileged("lab") {
        return Ok(());
    }
    for pod_link in [PodLink::Routed, PodLink::Bridge] {
        let mut lab = Lab::new("links", Options { pod_link, ..Options::default() })?;
        pods_answer(&lab)?;
        lab.restart_pod(0)?;
        lab.move_pod(1)?;
        pods_answer(&lab)?;
    }
    Ok(())
}

#[test]
fn a_panic_leaves_nothing_behind() -> Result<()> {
    if !privileged("lab") {
        return Ok(());
    }
    let outcome = std::panic::catch_unwind(|| {
        let lab = Lab::new("panic", Options::default()).expect("a lab can be made");
        let (path, directory) = (lab.node.path(), lab.directory().to_owned());
        assert!(path.exists() && lab.bpffs().exists());
        std::panic::panic_any((path, directory));
    });
    let panic = outcome.expect_err("the closure panics");
    let (namespace, directory) =
        panic.downcast_ref::<(std::path::PathBuf, std::path::PathBuf)>().expect("the paths were thrown");
    ensure!(!namespace.exists(), "the namespace is still there");
    ensure!(!directory.exists(), "the directory is still there");
    ensure!(!fs::read_to_string("/proc/mounts")?.contains(&*directory.to_string_lossy()), "the bpffs is still mounted");
    Ok(())
}
