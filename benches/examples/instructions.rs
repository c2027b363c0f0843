//! Runs one step of the hot path so many times, for `scripts/instructions.sh`, which counts instructions under valgrind:
//! `instructions NAME TIMES`; without arguments it prints the names.

#[path = "../operations.rs"]
mod operations;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (name, times) = (arguments.next(), arguments.next());
    let Some(name) = name else {
        return operations::ALL.iter().for_each(|(name, _)| println!("{name}"));
    };
    let times: usize = times.and_then(|times| times.parse().ok()).unwrap_or(1);
    let (_, make) = operations::ALL
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("there is no step {name}"));
    let mut operation = make();
    (0..times).for_each(|_| operation());
}
