//! What the node is measured with: a load generator, bare loops to compare with, and the comparison itself.
//!
//! Neighbours: `scripts/bench.sh` and `scripts/load.sh` run it, tests drive its counting. Nothing of it is shipped, and
//! it never uses the worker's own crates: whoever measures must not share the faults of what is measured.

pub mod assignment;
pub mod bare;
pub mod compare;
pub mod generator;
pub mod process;
pub mod scenarios;
pub mod streams;
pub mod tally;
pub mod web;
