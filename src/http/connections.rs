//! Connections: so many at once, each with a time to send the head of a request, all of them drained at a shutdown.
//!
//! HTTP/1.1 alone: finding out the version from a connection's first bytes has no time-out of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router as Routes;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::{debug, warn};

use crate::metrics::Metrics;

/// The pause after a connection could not be taken, mostly for want of file descriptors.
const TROUBLE: Duration = Duration::from_millis(250);

/// What bounds connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// So many at once; further ones wait with the system.
    pub most: usize,
    /// For so long a connection may take over a head, or lie idle.
    pub head: Duration,
}

/// Serves until `stop`, then until every connection has had its answer. Dropped, it cuts off what is left.
pub(super) async fn serve(
    listener: TcpListener,
    routes: Routes,
    bounds: Bounds,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(bounds.most));
    let mut open = JoinSet::new();
    let accept = async || match room.clone().acquire_owned().await {
        Ok(place) => listener.accept().await.map(|(stream, peer)| (place, stream, peer)),
        Err(closed) => Err(std::io::Error::other(closed)),
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => continue,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok((place, stream, peer)) => {
                let (routes, metrics, stop) = (routes.clone(), metrics.clone(), stop.clone());
                open.spawn(async move {
                    connection(stream, peer, routes, bounds.head, &metrics, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                metrics.http.connections.with_label_values(&["failed"]).inc();
                warn!(%error, "a connection could not be taken");
                tokio::time::sleep(TROUBLE).await;
            }
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

/// Serves one connection to its end.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    routes: Routes,
    head: Duration,
    metrics: &Metrics,
    stop: CancellationToken,
) {
    let answer = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        routes.clone().call(request)
    });
    let mut http = http1::Builder::new();
    let serving =
        http.timer(TokioTimer::new()).header_read_timeout(head).serve_connection(TokioIo::new(stream), answer);
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    let how = match &ended {
        Ok(()) => "ended",
        Err(error) if error.is_timeout() => "silent",
        Err(_) => "broken",
    };
    metrics.http.connections.with_label_values(&[how]).inc();
    if let Err(error) = ended {
        debug!(%error, %peer, "a connection ended");
    }
}
