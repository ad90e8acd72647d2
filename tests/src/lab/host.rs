//! Where an agent runs.

use std::path::{Path, PathBuf};

use super::{Lab, NODE, Namespace, Pair};

/// A machine of a lab, as an agent needs it. A lab has one; a cluster has one for each node.
pub trait Host {
    /// Its network.
    fn namespace(&self) -> &Namespace;

    /// Its addresses on its uplink.
    fn addresses(&self) -> Pair;

    /// Its own place for files.
    fn directory(&self) -> &Path;

    /// Its bpffs, mounted where the real host's bpftool can read it.
    fn bpffs(&self) -> PathBuf {
        self.directory().join("bpf")
    }
}

impl Host for Lab {
    fn namespace(&self) -> &Namespace {
        &self.node
    }

    fn addresses(&self) -> Pair {
        NODE
    }

    fn directory(&self) -> &Path {
        self.directory()
    }
}
