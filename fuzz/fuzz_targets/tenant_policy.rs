#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| caf_fuzz::tenant_policy::holds(bytes));
