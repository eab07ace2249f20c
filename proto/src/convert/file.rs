//! Uploads: streams of which the end must be said.

use crate::{
    error::{Error, Reason},
    v1,
};

/// The messages of an upload: one header, any number of data, one end.
impl v1::WriteRequest {
    pub fn header(header: v1::WriteHeader) -> Self {
        Self { part: Some(v1::write_request::Part::Header(header)) }
    }

    pub fn data(data: impl Into<bytes::Bytes>) -> Self {
        Self { part: Some(v1::write_request::Part::Data(data.into())) }
    }

    /// The file is complete.
    pub fn end() -> Self {
        Self { part: Some(v1::write_request::Part::End(v1::WriteEnd {})) }
    }
}

/// The same of an archive.
impl v1::UnpackRequest {
    pub fn header(header: v1::UnpackHeader) -> Self {
        Self { part: Some(v1::unpack_request::Part::Header(header)) }
    }

    pub fn data(data: impl Into<bytes::Bytes>) -> Self {
        Self { part: Some(v1::unpack_request::Part::Data(data.into())) }
    }

    /// The archive is complete.
    pub fn end() -> Self {
        Self { part: Some(v1::unpack_request::Part::End(v1::UnpackEnd {})) }
    }
}

/// The error for an upload that ended without [`v1::WriteRequest::end`].
pub fn upload_broken(path: &str) -> Error {
    Error::new(
        crate::Code::Aborted,
        Reason::UploadBroken,
        format!("{path}: the upload ended before it was complete, and nothing was written"),
    )
    .hint("send it again; the last message of an upload is `end`")
}

/// The error for an archive that ended without [`v1::UnpackRequest::end`].
pub fn unpack_broken(path: &str) -> Error {
    Error::new(
        crate::Code::Aborted,
        Reason::UploadBroken,
        format!("{path}: the archive ended before it was complete"),
    )
    .hint("send it again; the last message of an archive is `end`")
}
