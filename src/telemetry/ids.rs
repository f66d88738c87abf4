//! The ids of traces and spans, and which traces are kept. No I/O.

use std::cell::Cell;

use opentelemetry::trace::{Link, SpanId, SpanKind, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SamplingDecision, SamplingResult, ShouldSample};
use sha2::{Digest, Sha256};
use uuid::Uuid;

thread_local! {
    /// The id of the next span that begins on this thread.
    static NEXT: Cell<Option<SpanId>> = const { Cell::new(None) };
}

/// The span that `begin` begins gets this id.
pub(super) fn with_span_id(id: SpanId, begin: impl FnOnce()) {
    NEXT.set(Some(id));
    begin();
    NEXT.set(None);
}

/// Eight bytes of SHA-256 over an interaction's id: the id of its root span.
pub(super) fn derived(id: Uuid) -> [u8; 8] {
    let digest = Sha256::digest(id.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    bytes
}

/// Random ids, but where one was said.
#[derive(Debug, Default)]
pub(super) struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        self.0.new_trace_id()
    }

    fn new_span_id(&self) -> SpanId {
        NEXT.take().unwrap_or_else(|| self.0.new_span_id())
    }
}

/// Keeps a share of the traces, chosen by their ids alone, so that every process keeps the same ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct ById {
    /// 0 to 100.
    pub percent: u32,
}

impl ById {
    fn keeps(self, trace: TraceId) -> bool {
        // The last seven bytes: bits of the others say that the id is a UUID.
        let tail = trace.to_bytes()[9..].iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        (u128::from(tail) * 100) >> 56 < u128::from(self.percent)
    }
}

impl ShouldSample for ById {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        let decision = if self.keeps(trace) { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        let trace_state = parent.map(|cx| cx.span().span_context().trace_state().clone()).unwrap_or_default();
        SamplingResult { decision, attributes: Vec::new(), trace_state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interaction::interaction_id;

    #[test]
    fn a_share_of_the_interactions_is_kept_and_always_the_same_ones() {
        let kept = |percent| {
            let traces = (0..10_000).map(|n| interaction_id("a", &n.to_string()));
            traces.filter(|id| ById { percent }.keeps(TraceId::from_bytes(id.into_bytes()))).count()
        };
        assert_eq!((kept(0), kept(100)), (0, 10_000));
        assert!((2_300..2_700).contains(&kept(25)), "{}", kept(25));
    }

    #[test]
    fn a_span_gets_the_id_that_was_said_once() {
        let ids = Ids::default();
        let said = SpanId::from_bytes(derived(Uuid::nil()));
        with_span_id(said, || assert_eq!(ids.new_span_id(), said));
        assert_ne!(ids.new_span_id(), said);
    }
}
