//! Sets the storage up at boot, and carries out what the daemon was asked.

#![forbid(unsafe_code)]

fn main() {}
