//! Kinds that have a capacity of their own in this process. Their worker looks at what is next in line and claims by name what its
//! kind has room for: nothing is claimed that can't begin, and what is full lets others by.
//!
//! A look reads [`NEAR`] rows, or as many as there are slots. Where too little of them may begin, it reads [`FAR`] rows more, further down
//! each time, so that others are found behind a backlog of any length; such far looks take a fifth of the time at most.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::executor::Executor;
use crate::ledger::LedgerError;

/// Rows at the head that a look reads.
const NEAR: usize = 100;
/// Rows further down.
const FAR: usize = 2_000;
/// After a far look there is none for so many times as long as it took.
const REST: u32 = 4;

/// What runs of each kind that has a capacity.
#[derive(Default)]
pub(super) struct Kinds {
    running: Mutex<HashMap<String, usize>>,
    /// One of them has ended.
    pub freed: Notify,
}

/// A run of a kind, for as long as this lives.
pub(super) struct Running {
    kinds: Arc<Kinds>,
    kind: String,
}

/// Something that is next in line, by its place.
#[derive(Debug, Clone)]
pub(super) struct Ahead<P> {
    pub place: P,
    pub kind: String,
    pub execute: bool,
}

/// How far down the looks have come.
#[derive(Debug)]
pub(super) struct Walk<P> {
    after: Option<P>,
    rest_until: Option<Instant>,
}

impl<P> Default for Walk<P> {
    fn default() -> Self {
        Self { after: None, rest_until: None }
    }
}

impl Kinds {
    /// A run of `kind` begins.
    pub fn begin(self: &Arc<Self>, kind: &str) -> Running {
        *self.lock().entry(kind.to_owned()).or_default() += 1;
        Running { kinds: self.clone(), kind: kind.to_owned() }
    }

    /// For how many more there is room; none: for any number.
    pub fn room(&self, executor: &dyn Executor, kind: &str) -> Option<usize> {
        let running = self.lock().get(kind).copied().unwrap_or(0);
        executor.capacity(kind).map(|capacity| capacity.saturating_sub(running))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.kinds.lock();
        if let Some(count) = running.get_mut(&self.kind) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.kind);
            }
        }
        drop(running);
        self.kinds.freed.notify_one();
    }
}

impl<P: Ord + Clone> Walk<P> {
    /// At most `limit` places of what may begin, in their order. `look` reads so many that come after a place.
    pub async fn choose<L: Future<Output = Result<Vec<Ahead<P>>, LedgerError>>>(
        &mut self,
        limit: usize,
        room: impl Fn(&str) -> Option<usize>,
        look: impl Fn(Option<P>, usize) -> L,
    ) -> Result<Vec<P>, LedgerError> {
        let mut chosen = Chosen { limit, room, rooms: HashMap::new(), places: Vec::new() };
        let near = look(None, NEAR.max(limit)).await?;
        let end = near.last().filter(|_| near.len() == NEAR.max(limit)).map(|last| last.place.clone());
        near.into_iter().for_each(|ahead| chosen.offer(ahead));
        let Some(end) = end else {
            self.after = None;
            return Ok(chosen.places);
        };
        if chosen.places.len() < limit && self.pause().is_zero() {
            let began = Instant::now();
            let far = look(Some(self.after.take().unwrap_or_else(|| end.clone()).max(end)), FAR).await?;
            self.after = far.last().filter(|_| far.len() == FAR).map(|last| last.place.clone());
            self.rest_until = Some(Instant::now() + began.elapsed() * REST);
            far.into_iter().for_each(|ahead| chosen.offer(ahead));
        }
        Ok(chosen.places)
    }

    /// When to look again though nobody rings: it stands in the middle of a backlog.
    pub fn goes_on(&self) -> Option<Duration> {
        self.after.as_ref().map(|_| self.pause())
    }

    fn pause(&self) -> Duration {
        self.rest_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }
}

struct Chosen<P, R> {
    limit: usize,
    room: R,
    rooms: HashMap<String, Option<usize>>,
    places: Vec<P>,
}

impl<P, R: Fn(&str) -> Option<usize>> Chosen<P, R> {
    fn offer(&mut self, ahead: Ahead<P>) {
        if self.places.len() == self.limit {
            return;
        }
        // A rehearsal runs nothing.
        if ahead.execute {
            let room = &self.room;
            match self.rooms.entry(ahead.kind).or_insert_with_key(|kind| room(kind)) {
                Some(0) => return,
                Some(left) => *left -= 1,
                None => {}
            }
        }
        self.places.push(ahead.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `full` times a kind that is full, then one that isn't.
    fn line(full: usize) -> Vec<Ahead<usize>> {
        let ahead = |place, kind: &str| Ahead { place, kind: kind.to_owned(), execute: true };
        (0..full).map(|n| ahead(n, "full")).chain([ahead(full, "free")]).collect()
    }

    async fn choose(walk: &mut Walk<usize>, line: &[Ahead<usize>], limit: usize) -> (Vec<usize>, usize) {
        let read = std::sync::atomic::AtomicUsize::new(0);
        let room = |kind: &str| (kind == "full").then_some(0);
        let look = |after: Option<usize>, most: usize| {
            let from = after.map_or(0, |after| after + 1);
            let found: Vec<_> = line.iter().skip(from).take(most).cloned().collect();
            read.fetch_add(found.len(), std::sync::atomic::Ordering::Relaxed);
            std::future::ready(Ok(found))
        };
        let chosen = walk.choose(limit, room, look).await.unwrap();
        (chosen, read.into_inner())
    }

    #[tokio::test]
    async fn what_is_free_is_found_behind_any_backlog_and_no_look_reads_more_than_its_bound() {
        let (line, mut walk, mut looks) = (line(50_000), Walk::default(), 0);
        let found = loop {
            walk.rest_until = None;
            let (chosen, read) = choose(&mut walk, &line, 10).await;
            assert!(read <= NEAR + FAR, "{read}");
            looks += 1;
            if !chosen.is_empty() {
                break chosen;
            }
            assert!(walk.goes_on().is_some());
        };
        assert_eq!((found, looks), (vec![50_000], 50_000 / FAR));
        assert!(walk.goes_on().is_none(), "it begins anew at the head");
    }

    #[tokio::test]
    async fn after_a_far_look_comes_a_rest() {
        let (line, mut walk) = (line(50_000), Walk::default());
        walk.rest_until = Some(Instant::now() + Duration::from_secs(60));
        assert_eq!(choose(&mut walk, &line, 10).await.1, NEAR);
    }

    #[tokio::test]
    async fn no_more_is_chosen_than_its_kind_has_room_for() {
        let line: Vec<_> =
            (0..8).map(|n| Ahead { place: n, kind: ["a", "b"][n % 2].to_owned(), execute: n != 6 }).collect();
        let room = |kind: &str| (kind == "a").then_some(1);
        let look = |_: Option<usize>, _: usize| std::future::ready(Ok(line.clone()));
        let chosen = Walk::default().choose(5, room, look).await.unwrap();
        assert_eq!(chosen, [0, 1, 3, 5, 6], "6 is a rehearsal");
    }

    #[tokio::test]
    async fn a_kind_has_room_again_when_a_run_of_it_ends() {
        struct Two;
        #[async_trait::async_trait]
        impl Executor for Two {
            async fn execute(&self, _: &crate::executor::Call) -> crate::executor::Answer {
                std::future::pending().await
            }
            fn capacity(&self, _: &str) -> Option<usize> {
                Some(2)
            }
        }
        let kinds = Arc::<Kinds>::default();
        let (one, _two) = (kinds.begin("k"), kinds.begin("k"));
        assert_eq!((kinds.room(&Two, "k"), kinds.room(&Two, "other")), (Some(0), Some(2)));
        drop(one);
        kinds.freed.notified().await;
        assert_eq!(kinds.room(&Two, "k"), Some(1));
    }
}
