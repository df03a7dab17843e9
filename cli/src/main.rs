//! The command line of nemos.

#![forbid(unsafe_code)]

fn main() {}
