//! The program: hands the process's arguments and environment to the command line, and leaves with its code.

use std::process::ExitCode;

fn main() -> ExitCode {
    caf_worker::cli::run(std::env::args_os(), std::env::vars_os())
}
