#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| caf_blocks::properties::path_guard(bytes));
