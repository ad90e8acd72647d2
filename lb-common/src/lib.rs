//! Everything that decides what happens to a packet, shared by kernel (BPF) and host.
#![no_std]
