//! Where a server listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::ClientError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    Unix(PathBuf),
    Tcp(String),
    /// Host and port; the host is what the certificate must name.
    Tls(String),
}

impl FromStr for ServerAddress {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::Address(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(bad()) } else { Ok(ServerAddress::Unix(path.into())) };
        }
        let has_port =
            |rest: &str| rest.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok());
        match text.split_once("://") {
            Some(("tcp", rest)) if has_port(rest) => Ok(ServerAddress::Tcp(rest.to_owned())),
            Some(("tls", rest)) if has_port(rest) => Ok(ServerAddress::Tls(rest.to_owned())),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            ServerAddress::Tcp(rest) => write!(f, "tcp://{rest}"),
            ServerAddress::Tls(rest) => write!(f, "tls://{rest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were_and_others_are_refused() {
        for good in ["unix:/run/a.sock", "tcp://host:1", "tls://[::1]:7400"] {
            assert_eq!(good.parse::<ServerAddress>().unwrap().to_string(), good);
        }
        for bad in ["", "host:1", "tcp://host", "unix:", "http://host:1", "tcp://host:99999"] {
            assert!(bad.parse::<ServerAddress>().is_err(), "{bad}");
        }
    }
}
