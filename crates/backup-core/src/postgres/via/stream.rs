//! Bytes to a server and back, over the standard input and output of a program.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::Sleep;

/// Bytes that are kept of what the program says.
const KEPT: usize = 4096;
/// How long a program may take to end when nothing is left for it to do, and to say why it ended.
const TIME_TO_END: Duration = Duration::from_secs(2);

/// The program said why it ended, and ended.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(in crate::postgres) struct Unreached(pub(in crate::postgres) String);

/// The program ends when the value is dropped.
pub(in crate::postgres) struct Stream {
    /// Nothing only while the value is dropped.
    pipes: Option<(ChildStdin, ChildStdout, Child)>,
    /// What is left to write before anything else.
    first: Vec<u8>,
    words: Arc<Mutex<Vec<u8>>>,
    /// Ends when the program has said everything.
    heard: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Ends when that takes too long.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    /// Starts a program. `first` is written to it before anything else.
    pub(in crate::postgres) fn start(mut command: Command, first: Vec<u8>) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("a program without its pipes"));
        };
        let words = Arc::new(Mutex::new(Vec::new()));
        let reader = tokio::spawn(listen(stderr, Arc::clone(&words)));
        let heard = Box::pin(async move {
            let _ = reader.await;
        });
        Ok(Self { pipes: Some((stdin, stdout, child)), first, words, heard, patience: None })
    }

    /// The end of the stream: what the program said, or else what `otherwise` is.
    fn poll_end(&mut self, cx: &mut Context<'_>, otherwise: io::Result<()>) -> Poll<io::Result<()>> {
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(TIME_TO_END)));
        if patience.as_mut().poll(cx).is_pending() {
            ready!(self.heard.as_mut().poll(cx));
            // It may be asked again, and has nothing more to say.
            self.heard = Box::pin(std::future::ready(()));
        }
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let words = String::from_utf8_lossy(&words).trim().to_owned();
        Poll::Ready(if words.is_empty() {
            otherwise
        } else {
            Err(io::Error::new(io::ErrorKind::ConnectionAborted, Unreached(words)))
        })
    }

    fn poll_write_once(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some((stdin, ..)) = &mut self.pipes else { return Poll::Ready(Ok(0)) };
        match ready!(Pin::new(stdin).poll_write(cx, bytes)) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                ready!(self.poll_end(cx, Err(e)))?;
                Poll::Ready(Ok(0))
            }
            other => Poll::Ready(other),
        }
    }

    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            let written = self.poll_write_once(cx, &first);
            self.first = first;
            let written = ready!(written)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.first.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

/// Keeps the end of what is said.
async fn listen(mut stderr: ChildStderr, words: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; KEPT];
    while let Ok(read) = stderr.read(&mut buffer).await {
        if read == 0 {
            return;
        }
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.extend_from_slice(&buffer[..read]);
        let too_many = words.len().saturating_sub(KEPT);
        words.drain(..too_many);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Some((_, stdout, _)) = &mut self.pipes else { return Poll::Ready(Ok(())) };
        ready!(Pin::new(stdout).poll_read(cx, buf))?;
        if buf.filled().len() > before || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_end(cx, Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_first(cx))?;
        self.poll_write_once(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_first(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_first(cx)
    }
}

impl Drop for Stream {
    /// The program ends by itself when its input does, and what was written last still arrives.
    fn drop(&mut self) {
        let Some((stdin, stdout, mut child)) = self.pipes.take() else { return };
        drop((stdin, stdout));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // It is killed where it takes longer.
                let _ = tokio::time::timeout(TIME_TO_END, child.wait()).await;
            });
        }
    }
}
