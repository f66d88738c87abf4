//! What may stand between a router and Unleash, or in Unleash's place.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::net::TcpListener;

type Edit = Arc<dyn Fn(&mut Value) + Send + Sync>;

/// What becomes of a question.
#[derive(Clone)]
pub enum Mode {
    /// The server answers it.
    Pass,
    /// The server answers it, and this is made of the answer.
    Edit(Edit),
    /// Nobody ever answers.
    Hang,
    /// The answer begins and doesn't get on.
    Drip,
    /// This is the answer: status, content type, text.
    Say(u16, &'static str, String),
}

/// A proxy in front of an Unleash.
pub struct Proxy {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    server: Mutex<String>,
    mode: Mutex<Mode>,
    /// Status of each answer to a question for the flags, and whether it was sent with an ETag.
    seen: Mutex<Vec<(u16, bool)>>,
    client: reqwest::Client,
}

impl Proxy {
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let (server, mode, seen) = (Mutex::new(server.to_owned()), Mutex::new(Mode::Pass), Mutex::default());
        let shared = Arc::new(Shared { server, mode, seen, client });
        let routes = Router::new().fallback(answer).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, shared }
    }

    pub fn set(&self, mode: Mode) {
        *self.shared.mode.lock().unwrap() = mode;
    }

    pub fn edit(&self, edit: impl Fn(&mut Value) + Send + Sync + 'static) {
        self.set(Mode::Edit(Arc::new(edit)));
    }

    /// From now on another server is behind it.
    pub fn lead_to(&self, server: &str) {
        *self.shared.server.lock().unwrap() = server.to_owned();
    }

    pub fn seen(&self) -> Vec<(u16, bool)> {
        self.shared.seen.lock().unwrap().clone()
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mode = shared.mode.lock().unwrap().clone();
    let about_flags = uri.path() == "/api/client/features";
    let with_etag = headers.contains_key(header::IF_NONE_MATCH);
    let response = match mode {
        Mode::Pass => pass(&shared, method, &uri, headers, body).await,
        Mode::Edit(edit) if about_flags => {
            let mut headers = headers;
            headers.remove(header::IF_NONE_MATCH);
            let answer = pass(&shared, method, &uri, headers, body).await;
            let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            let mut value: Value = serde_json::from_slice(&bytes).unwrap();
            edit(&mut value);
            axum::Json(value).into_response()
        }
        Mode::Edit(_) => pass(&shared, method, &uri, headers, body).await,
        Mode::Hang => std::future::pending().await,
        Mode::Drip => {
            let drops = futures::stream::unfold(0, |n| async move {
                tokio::time::sleep(Duration::from_millis(50 * n)).await;
                Some((Ok::<_, std::io::Error>("{"), n + 1))
            });
            ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(drops)).into_response()
        }
        Mode::Say(status, kind, text) => {
            (StatusCode::from_u16(status).unwrap(), [(header::CONTENT_TYPE, kind)], text).into_response()
        }
    };
    if about_flags {
        shared.seen.lock().unwrap().push((response.status().as_u16(), with_etag));
    }
    response
}

async fn pass(shared: &Shared, method: Method, uri: &Uri, mut headers: HeaderMap, body: Bytes) -> Response {
    headers.remove(header::HOST);
    let url = format!("{}{uri}", shared.server.lock().unwrap());
    let Ok(answer) = shared.client.request(method, url).headers(headers).body(body).send().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let mut response = Response::builder().status(answer.status());
    for name in [header::CONTENT_TYPE, header::ETAG] {
        if let Some(value) = answer.headers().get(&name) {
            response = response.header(name, value);
        }
    }
    response.body(Body::from(answer.bytes().await.unwrap())).unwrap()
}
