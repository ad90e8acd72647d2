//! The configuration file: raw YAML with positions, then validated into a `Snapshot`.
