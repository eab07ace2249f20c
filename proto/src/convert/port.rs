//! Connections to a session's ports: both directions are streams of which the end must be said.

use crate::{
    error::{Code, Error, Reason},
    v1,
};

/// The messages of a client: one header, any number of data, one end.
impl v1::DialRequest {
    pub fn header(session: impl ToString, port: u16) -> Self {
        let header = v1::DialHeader { session_id: session.to_string(), port: port.into() };
        Self { part: Some(v1::dial_request::Part::Header(header)) }
    }

    pub fn data(data: impl Into<bytes::Bytes>) -> Self {
        Self { part: Some(v1::dial_request::Part::Data(data.into())) }
    }

    /// The client sends nothing more.
    pub fn end() -> Self {
        Self { part: Some(v1::dial_request::Part::End(v1::DialEnd {})) }
    }
}

/// Those of the server: that it is there, any number of data, one end.
impl v1::DialResponse {
    pub fn connected() -> Self {
        Self { part: Some(v1::dial_response::Part::Connected(v1::DialConnected {})) }
    }

    pub fn data(data: impl Into<bytes::Bytes>) -> Self {
        Self { part: Some(v1::dial_response::Part::Data(data.into())) }
    }

    /// The server inside sends nothing more.
    pub fn end() -> Self {
        Self { part: Some(v1::dial_response::Part::End(v1::DialEnd {})) }
    }
}

/// The first message of a connection.
pub fn dial_header(message: Option<&v1::DialRequest>) -> Result<&v1::DialHeader, Error> {
    match message.map(|message| &message.part) {
        Some(Some(v1::dial_request::Part::Header(header))) => Ok(header),
        Some(_) => Err(Error::invalid("header", "must come first")),
        None => Err(Error::invalid("header", "the stream was empty")),
    }
}

/// A port that something can listen on.
pub fn port(field: &str, port: u32) -> Result<u16, Error> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| Error::invalid(field, format!("{port} is no port")).hint("a port is 1 to 65535"))
}

/// The error for a connection that is over without an end.
pub fn connection_broken(what: impl Into<String>) -> Error {
    Error::new(Code::Aborted, Reason::ConnectionBroken, what)
}

/// The error for one connection too many.
pub fn too_many_connections(most: usize) -> Error {
    Error::exhausted(
        Reason::TooManyConnections,
        format!("the session has {most} connections to its ports open, as many as it may"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_one_that_something_can_listen_on() {
        assert_eq!((port("p", 1).unwrap(), port("p", 65_535).unwrap()), (1, u16::MAX));
        for none in [0, 65_536, u32::MAX] {
            let error = port("port", none).unwrap_err();
            assert_eq!(error.reason(), Reason::InvalidField, "{none}");
        }
    }

    #[test]
    fn a_connection_begins_with_its_header() {
        let header = v1::DialRequest::header("s", 80);
        assert_eq!(dial_header(Some(&header)).unwrap().port, 80);
        for wrong in [None, Some(&v1::DialRequest::end()), Some(&v1::DialRequest::default())] {
            assert!(dial_header(wrong).is_err());
        }
    }
}
