//! The nemos daemon: translates between the bus and the device.

#![forbid(unsafe_code)]

fn main() {}
