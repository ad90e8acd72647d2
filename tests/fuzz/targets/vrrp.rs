//! See `lb_tests::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| lb_tests::fuzz::check("vrrp", input));
