//! An OTLP collector that keeps what it is sent: the gRPC call `TraceService/Export`, decoded with the published types.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use http_body_util::{BodyExt, Full};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span as Proto;
use prost::Message;
use uuid::Uuid;

use crossover::interaction::hex;

/// A span as it arrived.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace: String,
    pub id: String,
    /// Empty for a root.
    pub parent: String,
    pub name: String,
    pub side: Option<String>,
    /// The traces that it links to.
    pub links: Vec<String>,
}

#[derive(Clone, Default)]
pub struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    pub endpoint: String,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self { endpoint, ..Self::default() };
        let routes = Router::new()
            .route("/opentelemetry.proto.collector.trace.v1.TraceService/Export", axum::routing::post(export))
            .with_state(collector.clone());
        tokio::spawn(axum::serve(listener, routes).into_future());
        collector
    }

    /// The spans of a trace.
    pub fn of(&self, trace: &str) -> Vec<Span> {
        self.spans.lock().unwrap().iter().filter(|span| span.trace == trace).cloned().collect()
    }

    /// The spans of an interaction's trace.
    pub fn about(&self, id: Uuid) -> Vec<Span> {
        self.of(&id.simple().to_string())
    }
}

async fn export(State(collector): State<Collector>, body: Bytes) -> Response {
    // One message: a flag, its length, and the message.
    assert_eq!(body[0], 0, "it is not compressed");
    let request = ExportTraceServiceRequest::decode(&body[5..]).unwrap();
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    let spans = scopes.flat_map(|scope| scope.spans).map(span_of);
    collector.spans.lock().unwrap().extend(spans);
    let message = ExportTraceServiceResponse::default().encode_to_vec();
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    let ok = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
    let body = Full::new(Bytes::from(frame)).with_trailers(async move { Some(Ok(ok)) });
    Response::builder().header("content-type", "application/grpc").body(Body::new(body)).unwrap()
}

fn span_of(span: Proto) -> Span {
    let side = span.attributes.iter().find(|a| a.key == "side").and_then(|a| a.value.clone()?.value);
    Span {
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        name: span.name,
        side: side.map(|value| match value {
            Value::StringValue(text) => text,
            other => panic!("{other:?}"),
        }),
        links: span.links.iter().map(|link| hex(&link.trace_id)).collect(),
    }
}
