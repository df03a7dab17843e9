//! The Linux edge of nemos: device-mapper, LUKS, mounts and the state store, synchronous.
