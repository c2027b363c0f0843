//! The scripts for operators, run as they are: exit codes and lines.
