//! The listener: how many clients may be connected, and how slow they may be.
//!
//! A client that is connected and says nothing, or says it byte by byte, is cut off; so is one that does
//! not read what it asked for. When all places for connections are taken, some more are served, one
//! request each and in a hurry, so that probes get an answer; everything else is turned away on them.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tower::Service;

/// What a listener puts up with.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Connections at once.
    pub connections: usize,
    /// Until the next request's headers are there.
    pub headers: Duration,
    /// In which a client must take some of its answer.
    pub reading: Duration,
}

/// Who is at the other end of a request's connection, among its extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub address: IpAddr,
    /// The connection is one more than there are places for: only probes are answered.
    pub crowded: bool,
}

/// Connections beside those that there are places for.
const RESERVE: usize = 64;
/// How long one of those has for its one request.
const HURRY: Duration = Duration::from_secs(2);
/// The longest head of a request, in bytes; tokens of people in many groups are some thousand long.
const MAX_HEAD: usize = 32 << 10;
const MAX_HEADERS: usize = 64;
/// After the system refused us a connection, for example because all file descriptors are in use.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `ended`, and then until open requests are answered; dropping the future ends them.
pub async fn serve(listener: TcpListener, router: Router, patience: Patience, ended: CancellationToken) {
    let places = Arc::new(Semaphore::new(patience.connections));
    let reserve = Arc::new(Semaphore::new(RESERVE));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = ended.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_the_connection(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        let take = |from: &Arc<Semaphore>| Arc::clone(from).try_acquire_owned().ok();
        let (crowded, place) = match take(&places) {
            Some(place) => (false, place),
            None => match take(&reserve) {
                Some(place) => (true, place),
                None => continue,
            },
        };
        let peer = Peer { address: peer.ip(), crowded };
        connections.spawn(connection(stream, peer, router.clone(), patience, ended.clone(), place));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    router: Router,
    patience: Patience,
    ended: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    // Answers are written whole; without it the last piece of one can wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let answer = router.clone().call(request.map(Body::new));
        async move {
            let answer: Result<Response, Infallible> = answer.await;
            answer
        }
    });
    let headers = if peer.crowded { patience.headers.min(HURRY) } else { patience.headers };
    let io = TokioIo::new(Impatient { stream, limit: patience.reading, until: None });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(headers)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .keep_alive(!peer.crowded)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = ended.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(peer = %peer.address, %error, "a connection broke off");
    }
}

/// A stream whose writes fail when nothing can be written for too long.
struct Impatient {
    stream: TcpStream,
    limit: Duration,
    /// Set while a write waits.
    until: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn judge<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.until = None;
            return written;
        }
        let limit = self.limit;
        let until = self.until.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(until.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.judge(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
