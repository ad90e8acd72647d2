//! What the server shows and what it asks for: certificate and token, from files that are read for every connection, so that
//! whoever renews them need not tell the agent. No secret is written to a log or a status.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper::{HeaderMap, header::AUTHORIZATION};
use subtle::ConstantTimeEq;
use thiserror::Error;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    },
};
use tracing::{info, warn};

use crate::model::TlsFiles;

/// A chain of certificates is some kilobytes.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// As docs/configuration.md says.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Why there is no certificate or token.
#[derive(Debug, Error)]
pub(super) enum CredentialError {
    #[error("{}: cannot be read: {cause}; it must be a file that the agent's user owns", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{}: is longer than {bytes_max} bytes; check that it is the right file", path.display())]
    TooLong { path: PathBuf, bytes_max: u64 },
    #[error("{}: holds no {what} in PEM: {cause}", path.display())]
    NoPem { path: PathBuf, what: &'static str, cause: pem::Error },
    #[error("{} and {} are no certificate with its key: {cause}", files.certificate.display(), files.key.display())]
    NoPair { files: TlsFiles, cause: rustls::Error },
    #[error("{}: holds no token; write one of visible ASCII characters", path.display())]
    NoToken { path: PathBuf },
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, CredentialError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(bytes_max + 1).read_to_end(&mut bytes))
        .map_err(|cause| CredentialError::Unreadable { path: path.into(), cause })?;
    if bytes.len() as u64 > bytes_max {
        return Err(CredentialError::TooLong { path: path.into(), bytes_max });
    }
    Ok(bytes)
}

/// Certificate and key, as they are in their files.
pub(super) struct Tls {
    files: TlsFiles,
    /// What was read and is used.
    pem: [Vec<u8>; 2],
    acceptor: TlsAcceptor,
    /// What was told last of files that cannot be used.
    trouble: Option<String>,
}

impl Tls {
    pub(super) fn load(files: &TlsFiles) -> Result<Self, CredentialError> {
        let pem = Self::read(files)?;
        Ok(Self { acceptor: acceptor(files, &pem)?, pem, files: files.clone(), trouble: None })
    }

    fn read(files: &TlsFiles) -> Result<[Vec<u8>; 2], CredentialError> {
        Ok([read(&files.certificate, PEM_BYTES_MAX)?, read(&files.key, PEM_BYTES_MAX)?])
    }

    /// For the next connection. Files that cannot be used, as between the writing of one and of the other, change nothing.
    pub(super) fn acceptor(&mut self) -> TlsAcceptor {
        match self.renew() {
            Ok(renewed) => {
                if renewed {
                    info!(path = %self.files.certificate.display(), "certificate renewed");
                }
                self.trouble = None;
            }
            Err(error) => tell(&mut self.trouble, error.to_string(), "the certificate before it stays in use"),
        }
        self.acceptor.clone()
    }

    fn renew(&mut self) -> Result<bool, CredentialError> {
        let pem = Self::read(&self.files)?;
        if pem == self.pem {
            return Ok(false);
        }
        self.acceptor = acceptor(&self.files, &pem)?;
        self.pem = pem;
        Ok(true)
    }
}

fn acceptor(files: &TlsFiles, [certificate, key]: &[Vec<u8>; 2]) -> Result<TlsAcceptor, CredentialError> {
    let no_pem = |path: &Path, what, cause| CredentialError::NoPem { path: path.into(), what, cause };
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<Vec<_>, _>>()
        .and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
        .map_err(|cause| no_pem(&files.certificate, "certificate", cause))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|cause| no_pem(&files.key, "private key", cause))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|cause| CredentialError::NoPair { files: files.clone(), cause })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Who may have metrics and state.
#[derive(Clone)]
pub(super) enum Access {
    /// Whoever can reach the address.
    Everybody,
    /// Who shows this token.
    Bearer(Arc<[u8]>),
    /// Nobody: the token cannot be read.
    Nobody,
}

impl Access {
    /// Takes the same time for every wrong token of a length.
    pub(super) fn is_granted(&self, headers: &HeaderMap) -> bool {
        let token = match self {
            Self::Everybody => return true,
            Self::Nobody => return false,
            Self::Bearer(token) => token,
        };
        let shown = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        shown.is_some_and(|shown| shown.ct_eq(token).into())
    }
}

/// The token of `Bearer TOKEN` (RFC 6750, 2.1); the scheme's case does not count (RFC 9110, 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| token.trim_ascii())
}

/// The token, as it is in its file.
pub(super) struct TokenFile {
    path: PathBuf,
    trouble: Option<String>,
}

impl TokenFile {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, trouble: None }
    }

    /// For the next connection. An older token counts no longer, also where the new one cannot be read.
    pub(super) fn access(&mut self) -> Access {
        match token(&self.path) {
            Ok(token) => {
                self.trouble = None;
                Access::Bearer(token)
            }
            Err(error) => {
                tell(&mut self.trouble, error.to_string(), "metrics and state are refused");
                Access::Nobody
            }
        }
    }
}

fn token(path: &Path) -> Result<Arc<[u8]>, CredentialError> {
    let bytes = read(path, TOKEN_BYTES_MAX)?;
    let token = bytes.trim_ascii();
    // An empty one would be shown by anybody; another could be shown by nobody.
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(CredentialError::NoToken { path: path.into() });
    }
    Ok(token.into())
}

/// Tells of a trouble when it comes, not for each connection.
fn tell(last: &mut Option<String>, error: String, consequence: &str) {
    if last.as_ref() != Some(&error) {
        warn!(error, "{consequence}");
        *last = Some(error);
    }
}
