//! One connection: connect, introduce, send and receive frames.

use std::pin::Pin;
use std::sync::Arc;

use atoll_wire::{FRAME_BYTES_MAX, Hello, Response, Welcome};
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig as TlsConfig, RootCertStore, crypto};

use crate::{ClientConfig, ClientError, ServerAddress};

pub(crate) type Reading = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type Writing = Box<dyn AsyncWrite + Send + Unpin>;

/// Both directions of a stream to a server.
pub type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);
/// Makes streams to a server.
pub type Dialer = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = std::io::Result<Halves>> + Send>> + Send + Sync>;

/// An introduced connection.
pub(crate) struct Connection {
    pub reader: Receiver,
    pub writer: Writing,
    pub welcome: Welcome,
}

pub(crate) struct Receiver {
    reader: Reading,
    received: BytesMut,
}

impl Receiver {
    /// The next message; `None` when the connection is over.
    pub async fn next(&mut self) -> Option<(u64, Response)> {
        loop {
            match atoll_wire::next_frame(&mut self.received, FRAME_BYTES_MAX) {
                Ok(Some((id, body))) => return atoll_wire::decode(&body).ok().map(|response| (id, response)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "bad frame from the server");
                    return None;
                }
            }
            match self.reader.read_buf(&mut self.received).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}

fn tls(config: &ClientConfig) -> Result<TlsConnector, ClientError> {
    let ca = config.ca.as_ref().ok_or_else(|| ClientError::Tls("give the certificates to trust with --ca".into()))?;
    let fail = |error: String| ClientError::Tls(format!("{}: {error}", ca.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| fail(e.to_string()))? {
        let certificate = certificate.map_err(|e| fail(e.to_string()))?;
        roots.add(certificate).map_err(|e| fail(e.to_string()))?;
    }
    let tls = TlsConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| ClientError::Tls(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(tls)))
}

async fn open(config: &ClientConfig) -> Result<Halves, ClientError> {
    let unreachable = |error: std::io::Error| ClientError::Unreachable {
        address: config.address.to_string(),
        reason: error.to_string(),
    };
    fn halves<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S) -> Halves {
        let (reader, writer) = tokio::io::split(stream);
        (Box::new(reader), Box::new(writer))
    }
    if let Some(dial) = &config.dialer {
        return dial().await.map_err(unreachable);
    }
    match &config.address {
        ServerAddress::Unix(path) => {
            let (reader, writer) = UnixStream::connect(path).await.map_err(unreachable)?.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
        ServerAddress::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(unreachable)?;
            stream.set_nodelay(true).map_err(unreachable)?;
            let (reader, writer) = stream.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
        ServerAddress::Tls(address) => {
            let tls = tls(config)?;
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                .map_err(|e| ClientError::Tls(e.to_string()))?;
            let stream = TcpStream::connect(address).await.map_err(unreachable)?;
            stream.set_nodelay(true).map_err(unreachable)?;
            Ok(halves(tls.connect(name, stream).await.map_err(|e| ClientError::Tls(e.to_string()))?))
        }
    }
}

/// Connect and introduce, within the connect timeout.
pub(crate) async fn connect(config: &ClientConfig, hello: Hello) -> Result<Connection, ClientError> {
    let work = async {
        let (reader, mut writer) = open(config).await?;
        let mut bytes = BytesMut::new();
        atoll_wire::encode_hello(1, &hello, &mut bytes).map_err(|_| ClientError::Protocol)?;
        writer.write_all(&bytes).await.map_err(|_| ClientError::Protocol)?;
        let mut reader = Receiver { reader, received: BytesMut::with_capacity(64 * 1024) };
        match reader.next().await {
            Some((_, Response::Welcome(welcome))) => Ok(Connection { reader, writer, welcome }),
            Some((_, Response::Refused { message })) => Err(ClientError::Refused(message)),
            _ => Err(ClientError::Protocol),
        }
    };
    tokio::time::timeout(config.connect_timeout, work).await.unwrap_or_else(|_| {
        Err(ClientError::Unreachable { address: config.address.to_string(), reason: "no answer in time".into() })
    })
}
