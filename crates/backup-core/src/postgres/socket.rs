//! The stream below a connection. tokio-postgres logs in over it, and does not know replication: so the stream
//! asks for replication in the start-up message, and stays in reach afterwards.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::Config;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::conninfo::{CONNECT_TIMEOUT, Host};
use super::via::{self, Via};

/// Version 3.0 of the protocol, in a start-up message (PostgreSQL documentation, "Message Formats").
const PROTOCOL_3_0: [u8; 4] = [0, 3, 0, 0];
/// Makes the server a WAL sender that serves physical replication.
const REPLICATION: &[u8] = b"replication\0true\0";

/// Bytes both ways, below TLS or above it.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {
    fn binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl Duplex for TcpStream {}
impl Duplex for UnixStream {}
impl Duplex for via::Stream {}

struct Encrypted<S>(S);

impl<S: TlsStream + Send + Unpin> Duplex for Encrypted<S> {
    fn binding(&self) -> ChannelBinding {
        self.0.channel_binding()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A handle to a stream. Its clones are the same stream.
#[derive(Clone)]
pub(super) struct Socket(Arc<Mutex<Inner>>);

struct Inner {
    stream: Box<dyn Duplex>,
    replication: bool,
    /// What is left to write of a start-up message that was rewritten.
    pending: Vec<u8>,
    /// The stream over this one: TLS, where that was agreed on.
    above: Weak<Mutex<Inner>>,
}

impl Socket {
    /// Connects to a server. With `replication` the session that is opened over it is a WAL sender's. Through
    /// another place it only starts to: where that fails, reading and writing say so.
    pub(super) async fn open(
        host: &Host,
        via: Option<&Via>,
        config: &Config,
        replication: bool,
    ) -> io::Result<Self> {
        if let Some(via) = via {
            return Ok(Self::new(Box::new(via.connect(host)?), replication));
        }
        let timeout = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        let connected = tokio::time::timeout(timeout, async {
            let stream: Box<dyn Duplex> = if host.is_socket() {
                Box::new(UnixStream::connect(host.to_string()).await?)
            } else {
                let name = host.address.as_deref().unwrap_or(&host.name);
                let stream = TcpStream::connect((name, host.port)).await?;
                stream.set_nodelay(true)?;
                keep_alive(&stream, config)?;
                Box::new(stream)
            };
            Ok::<_, io::Error>(stream)
        });
        let stream = connected.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(Self::new(stream, replication))
    }

    fn new(stream: Box<dyn Duplex>, replication: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner { stream, replication, pending: Vec::new(), above: Weak::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream that messages go over: this one, or the TLS above it.
    pub(super) fn top(&self) -> Self {
        self.lock().above.upgrade().map_or_else(|| self.clone(), Self)
    }
}

fn keep_alive(stream: &TcpStream, config: &Config) -> io::Result<()> {
    if config.get_keepalives() {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, config.get_keepalives_idle())?;
        if let Some(interval) = config.get_keepalives_interval() {
            sockopt::set_tcp_keepintvl(stream, interval)?;
        }
        if let Some(count) = config.get_keepalives_retries() {
            sockopt::set_tcp_keepcnt(stream, count)?;
        }
    }
    #[cfg(target_os = "linux")]
    if let Some(timeout) = config.get_tcp_user_timeout() {
        sockopt::set_tcp_user_timeout(stream, u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX))?;
    }
    Ok(())
}

impl Inner {
    fn write_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

/// A start-up message that asks for replication as well; nothing where `message` is not a start-up message.
fn asking_for_replication(message: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(message.len()).ok()?;
    let (head, parameters) = message.split_at_checked(8)?;
    if head[..4] != length.to_be_bytes() || head[4..] != PROTOCOL_3_0 {
        return None;
    }
    let longer = length + u32::try_from(REPLICATION.len()).ok()?;
    Some([&longer.to_be_bytes()[..], &PROTOCOL_3_0, REPLICATION, parameters].concat())
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        ready!(inner.write_pending(cx))?;
        if inner.replication
            && let Some(message) = asking_for_replication(buf)
        {
            inner.replication = false;
            inner.pending = message;
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut inner.stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        ready!(inner.write_pending(cx))?;
        Pin::new(&mut inner.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().stream).poll_shutdown(cx)
    }
}

impl TlsStream for Socket {
    fn channel_binding(&self) -> ChannelBinding {
        self.lock().stream.binding()
    }
}

/// Puts TLS over a [`Socket`], as a socket again.
pub(super) struct Above<T>(pub(super) T);

impl<T> TlsConnect<Socket> for Above<T>
where
    T: TlsConnect<Socket, Future: Send> + Send + 'static,
    T::Stream: Send + 'static,
{
    type Stream = Socket;
    type Error = T::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Socket, T::Error>> + Send>>;

    fn connect(self, below: Socket) -> Self::Future {
        Box::pin(async move {
            let stream = self.0.connect(below.clone()).await?;
            let mut inner = below.lock();
            let above = Socket::new(Box::new(Encrypted(stream)), inner.replication);
            inner.above = Arc::downgrade(&above.0);
            Ok(above)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::asking_for_replication;

    #[test]
    fn only_a_start_up_message_is_rewritten() {
        let message = b"\0\0\0\x12\0\x03\0\0user\0bob\0\0";
        let longer = asking_for_replication(message).unwrap();
        assert_eq!(longer[..4], u32::try_from(longer.len()).unwrap().to_be_bytes());
        assert_eq!(longer[4..], *b"\0\x03\0\0replication\0true\0user\0bob\0\0");
        // A request for TLS, a message cut short, a TLS record.
        for other in [&b"\0\0\0\x08\x04\xd2\x16\x2f"[..], &message[..12], b"\x16\x03\x01\0\x05abcdefg", b""] {
            assert_eq!(asking_for_replication(other), None);
        }
    }
}
