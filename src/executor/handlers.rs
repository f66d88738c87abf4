//! Handlers in this process, registered by kind with the type of their argument beside them.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Answer, Call, Executor};
use crate::interaction::Payload;

/// What a handler knows of its call beyond its argument.
pub type Context = Call;

type Handler = Arc<dyn Fn(Call) -> BoxFuture<'static, Answer> + Send + Sync>;

/// How a handler is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct HandlerOptions {
    /// So many at once in this process, of both sides together; none: as many as there are slots. More is not claimed: it waits for this
    /// process to have room, or for another, and lets other kinds by.
    pub capacity: Option<NonZeroUsize>,
}

#[derive(Clone)]
struct Registered {
    handler: Handler,
    capacity: Option<(usize, Arc<Semaphore>)>,
}

/// Handlers by kind; a kind without one goes to the executor behind them, if there is one.
#[derive(Clone, Default)]
pub struct Handlers {
    by_kind: HashMap<String, Registered>,
    otherwise: Option<Arc<dyn Executor>>,
}

/// Why a handler did not succeed.
#[derive(Debug)]
pub struct HandlerError(Answer);

impl HandlerError {
    /// It may succeed another time.
    pub fn retryable(error: impl fmt::Display) -> Self {
        Self(Answer::retryable(error.to_string()))
    }

    /// It would fail again.
    pub fn permanent(error: impl fmt::Display) -> Self {
        Self(Answer::permanent(error.to_string()))
    }

    /// No failure: what this handler began goes on without its worker. Whoever runs it keeps it with heartbeats at least every
    /// `silence`, and ends it, over the API and with the call's fence. The call is over with this.
    pub fn detached(silence: Duration) -> Self {
        Self(Answer::detached(silence))
    }
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::retryable(error)
    }
}

impl Handlers {
    /// No handlers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs interactions of `kind` through `handler`. A payload that is not of its argument's type fails for good.
    pub fn register<A, R, F, Fut>(self, kind: &str, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Fn(A, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        self.register_with(kind, HandlerOptions::default(), handler)
    }

    /// The same, run as `options` say.
    pub fn register_with<A, R, F, Fut>(mut self, kind: &str, options: HandlerOptions, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Fn(A, Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, HandlerError>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let boxed: Handler = Arc::new(move |call: Call| {
            let handler = handler.clone();
            Box::pin(async move {
                let argument = match read(call.payload.get()) {
                    Ok(argument) => argument,
                    Err(problem) => return Answer::permanent(problem),
                };
                match handler(argument, call).await {
                    Ok(result) => result_of(&result),
                    Err(HandlerError(answer)) => answer,
                }
            })
        });
        let capacity = options.capacity.map(|most| (most.get(), Arc::new(Semaphore::new(most.get()))));
        self.by_kind.insert(kind.to_owned(), Registered { handler: boxed, capacity });
        self
    }

    /// Whether nothing can be run.
    pub fn is_empty(&self) -> bool {
        self.by_kind.is_empty() && self.otherwise.is_none()
    }

    /// Sends every other kind to `executor`.
    pub fn otherwise(mut self, executor: Arc<dyn Executor>) -> Self {
        self.otherwise = Some(executor);
        self
    }
}

/// The argument, or which field is not what the handler takes.
fn read<A: DeserializeOwned>(payload: &str) -> Result<A, String> {
    let mut reader = serde_json::Deserializer::from_str(payload);
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let at = error.path().to_string();
        let field = if at == "." { String::new() } else { format!("`{at}`: ") };
        format!("the payload is not what the handler takes: {field}{}", error.into_inner())
    })?;
    reader.end().map_err(|error| format!("the payload is not what the handler takes: {error}"))?;
    Ok(read)
}

fn result_of(result: &impl Serialize) -> Answer {
    match serde_json::to_string(result).and_then(Payload::parse) {
        Ok(payload) => Answer::Done(payload),
        Err(error) => Answer::permanent(format!("the handler's result can't be written as JSON: {error}")),
    }
}

#[async_trait]
impl Executor for Handlers {
    async fn execute(&self, call: &Call) -> Answer {
        match (self.by_kind.get(&call.kind), &self.otherwise) {
            (Some(registered), _) => (registered.handler)(call.clone()).await,
            (None, Some(executor)) => executor.execute(call).await,
            (None, None) => {
                let mut known: Vec<_> = self.by_kind.keys().map(String::as_str).collect();
                known.sort_unstable();
                // Another worker, or the next deployment, may know it.
                Answer::retryable(format!(
                    "no handler for kind `{}` here, and no runner.url is set; registered: {}",
                    call.kind,
                    known.join(", ")
                ))
            }
        }
    }

    fn capacity(&self, kind: &str) -> Option<usize> {
        match self.by_kind.get(kind) {
            Some(registered) => registered.capacity.as_ref().map(|capacity| capacity.0),
            None => self.otherwise.as_ref()?.capacity(kind),
        }
    }

    fn has_capacities(&self) -> bool {
        let behind = || self.otherwise.as_ref().is_some_and(|executor| executor.has_capacities());
        self.by_kind.values().any(|registered| registered.capacity.is_some()) || behind()
    }

    async fn room(&self, kind: &str) -> Option<OwnedSemaphorePermit> {
        match self.by_kind.get(kind) {
            Some(registered) => registered.capacity.as_ref()?.1.clone().acquire_owned().await.ok(),
            None => self.otherwise.as_ref()?.room(kind).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interaction::{Fence, Side};
    use crate::policy::Failure;

    #[derive(serde::Deserialize)]
    struct Sum {
        a: i32,
        b: i32,
    }

    fn call(kind: &str, payload: &str) -> Call {
        Call {
            id: uuid::Uuid::nil(),
            account: "a".into(),
            kind: kind.into(),
            key: "k".into(),
            series: None,
            payload: Payload::parse(payload.into()).unwrap(),
            side: Side::Postgres,
            fence: Fence { epoch: 1, attempt: 1 },
            heartbeat: Default::default(),
            over: Default::default(),
        }
    }

    fn handlers() -> Handlers {
        Handlers::new()
            .register("sum", |sum: Sum, _| async move { Ok(sum.a + sum.b) })
            .register("fail", |_: serde_json::Value, _| async move { Err::<(), _>(HandlerError::retryable("not now")) })
    }

    #[tokio::test]
    async fn a_handler_gets_its_typed_argument() {
        let answer = handlers().execute(&call("sum", r#"{"a":1,"b":2}"#)).await;
        assert!(matches!(answer, Answer::Done(p) if p.get() == "3"));
    }

    #[tokio::test]
    async fn a_handler_may_go_on_without_its_worker() {
        let away =
            |_: serde_json::Value, _| async move { Err::<(), _>(HandlerError::detached(Duration::from_secs(60))) };
        let answer = Handlers::new().register("away", away).execute(&call("away", "1")).await;
        assert!(matches!(answer, Answer::Detached { silence } if silence == Duration::from_secs(60)));
    }

    #[tokio::test]
    async fn a_payload_of_another_type_fails_for_good() {
        for (payload, words) in [(r#"{"a":"x","b":1}"#, "`a`: invalid type"), (r#"{"a":1}"#, "missing field `b`")] {
            let answer = handlers().execute(&call("sum", payload)).await;
            let Answer::Failed { failure: Failure::Permanent, error } = answer else { panic!("{answer:?}") };
            assert!(error.contains(words), "{error}");
        }
    }

    #[tokio::test]
    async fn an_unknown_kind_is_tried_again_and_names_those_there_are() {
        let answer = handlers().execute(&call("som", "1")).await;
        assert!(
            matches!(answer, Answer::Failed { failure: Failure::Retryable { .. }, error } if error.ends_with("fail, sum"))
        );
    }
}
