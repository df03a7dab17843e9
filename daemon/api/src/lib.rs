//! The D-Bus contract of nemos: names, wire types, errors and client proxies.

#![forbid(unsafe_code)]
