//! What the fuzz targets in `fuzz/` call. The unit tests in [`crate::protocol::hostile`] call the same.

/// A master against the worker that these bytes make up.
pub fn lane(bytes: &[u8]) {
    crate::protocol::hostile::lane(bytes);
}

/// Any bytes as the records of a batch.
pub fn records(bytes: &[u8]) {
    crate::protocol::hostile::records(bytes);
}

/// Any bytes as archives of several types.
pub fn codec(bytes: &[u8]) {
    crate::protocol::hostile::codec(bytes);
}
