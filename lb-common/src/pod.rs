//! What may be read from and written to maps as plain bytes.

use crate::abi::*;

// A macro because aya's marker trait wants one impl for each type.
macro_rules! plain {
    ($($t:ty),* $(,)?) => {$(
        // SAFETY: repr(C), plain integers, padding explicit; any bytes are a value.
        unsafe impl aya::Pod for $t {}
    )*};
}

plain!(
    ServiceKey,
    Service,
    SlotBlock,
    History,
    Backend,
    Member,
    Endpoint,
    BypassKey,
    Bypass,
    Counter,
    Traffic,
    Settings,
    Bucket,
    Route,
    Uplink,
    crate::address::Address,
    crate::agent::About,
    crate::agent::Undo,
    crate::agent::UndoKey,
    crate::holder::Conflict,
    crate::holder::Holder,
    crate::holder::HolderKey,
    crate::holder::VirtualMac,
    crate::holder::VirtualMacKey,
);
