//! Questions to Unleash's client API. Only a whole, timely 200 with JSON or a 304 to our own ETag is an answer; every
//! other one says what it was, and never the token.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use uuid::Uuid;

use super::Settings;

/// The four flags of a large company in lists of accounts come to a few megabytes.
const MOST_BYTES: usize = 16 << 20;
/// All four begin with it; the others of the server need not travel.
const PREFIX: &str = "crossover-";
/// What is understood of the document: segments beside the features, and nothing newer that would change a meaning.
const CLIENT_SPEC: &str = "5.2.0";
/// As Unleash shows it among the applications.
pub(super) const SDK: &str = concat!("crossover:", env!("CARGO_PKG_VERSION"));

/// The way to one Unleash.
pub(super) struct Transport {
    client: Client,
    base: String,
    timeout: Duration,
    /// Which process this is, in Unleash's lists.
    pub(super) instance: String,
}

/// An answer.
pub(super) enum Reply {
    Document { text: String, etag: Option<HeaderValue> },
    Unchanged,
}

/// No answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("can't be reached: {0}")]
    Unreachable(String),
    #[error("broke off: {0}")]
    Broken(String),
    #[error("gave no whole answer within {0:?}")]
    Timeout(Duration),
    #[error("refuses flags.token ({0}): it was revoked, has expired, or is no backend token of this Unleash")]
    Denied(StatusCode),
    #[error("answers {0}")]
    Status(StatusCode),
    #[error("answers 200 with {0} instead of JSON; does flags.url lead to Unleash?")]
    NotJson(String),
    #[error("answers with more than {MOST_BYTES} bytes")]
    TooLarge,
}

impl Failure {
    /// For the metric.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Failure::Unreachable(_) | Failure::Broken(_) => "unreachable",
            Failure::Timeout(_) => "timeout",
            Failure::Denied(_) => "denied",
            Failure::Status(_) => "status",
            Failure::NotJson(_) => "refused",
            Failure::TooLarge => "too_large",
        }
    }

    /// Whether Unleash may have heard the question all the same.
    pub(super) fn in_doubt(&self) -> bool {
        matches!(self, Failure::Timeout(_) | Failure::Broken(_))
    }
}

impl Transport {
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        let instance = Uuid::new_v4().to_string();
        let plain = |text: &str| HeaderValue::from_str(text).map_err(|_| format!("`{text}` can't be sent in a header"));
        let mut token = plain(settings.token.expose()).map_err(|_| "flags.token can't be sent in a header")?;
        token.set_sensitive(true);
        let mut headers = HeaderMap::from_iter([(AUTHORIZATION, token)]);
        for (name, value) in [
            ("unleash-appname", settings.app_name.as_str()),
            ("unleash-instanceid", &instance),
            ("unleash-connection-id", &instance),
            ("unleash-sdk", SDK),
            ("unleash-client-spec", CLIENT_SPEC),
        ] {
            headers.insert(name, plain(value)?);
        }
        let client = Client::builder()
            .default_headers(headers)
            .user_agent(SDK)
            .connect_timeout(settings.timeout)
            .timeout(settings.timeout)
            // A login page somewhere else is no answer, and is not to see the token.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { client, base: settings.base()?, timeout: settings.timeout, instance })
    }

    /// Asks for the flags; with an ETag, only if they are others than those that came with it.
    pub(super) async fn fetch(&self, etag: Option<&HeaderValue>) -> Result<Reply, Failure> {
        let url = format!("{}/api/client/features?namePrefix={PREFIX}", self.base);
        let mut request = self.client.get(url).header(ACCEPT, "application/json");
        if let Some(etag) = etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let response = self.send(request).await?;
        if response.status() == StatusCode::NOT_MODIFIED && etag.is_some() {
            return Ok(Reply::Unchanged);
        }
        if response.status() != StatusCode::OK {
            return Err(Failure::Status(response.status()));
        }
        let kind = response.headers().get(CONTENT_TYPE).map_or("no content type", |kind| kind.to_str().unwrap_or("?"));
        let kind = kind.split(';').next().unwrap_or(kind).trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return Err(Failure::NotJson(kind.to_owned()));
        }
        let etag = response.headers().get(ETAG).cloned();
        Ok(Reply::Document { text: self.text(response).await?, etag })
    }

    /// Tells something.
    pub(super) async fn post(&self, path: &str, body: &impl Serialize) -> Result<(), Failure> {
        let response = self.send(self.client.post(format!("{}{path}", self.base)).json(body)).await?;
        if response.status().is_success() { Ok(()) } else { Err(Failure::Status(response.status())) }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.failure(error))?;
        match response.status() {
            denied @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(Failure::Denied(denied)),
            _ => Ok(response),
        }
    }

    async fn text(&self, mut response: Response) -> Result<String, Failure> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failure(error))? {
            if bytes.len() + chunk.len() > MOST_BYTES {
                return Err(Failure::TooLarge);
            }
            bytes.extend_from_slice(&chunk);
        }
        String::from_utf8(bytes).map_err(|_| Failure::NotJson("bytes that aren't UTF-8".to_owned()))
    }

    fn failure(&self, error: reqwest::Error) -> Failure {
        if error.is_timeout() {
            return Failure::Timeout(self.timeout);
        }
        let connecting = error.is_connect();
        // The innermost error: those around it only say that something failed.
        let error: &dyn std::error::Error = &error.without_url();
        let cause = std::iter::successors(Some(error), |error| error.source()).last().map(ToString::to_string);
        let cause = cause.unwrap_or_default();
        if connecting { Failure::Unreachable(cause) } else { Failure::Broken(cause) }
    }
}
