//! Kinds that have a capacity of their own in this process. Their worker looks at what is next in line and claims by name what its
//! kind has room for: nothing is claimed that can't begin, and what is full lets others by.
//!
//! Where the lowest priority has a share of a claim, the first of it are looked at as well.
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
    /// Minus its priority.
    pub rank: i16,
    pub kind: String,
    pub execute: bool,
}

/// Where a look begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Spot<P> {
    Head,
    Behind(P),
    /// The first of the lowest priority.
    Lowest,
}

/// How far down the looks have come.
#[derive(Debug)]
pub(super) struct Walk<P> {
    after: Option<P>,
    rest_until: Option<Instant>,
    /// Of the last choice.
    pub chose: Chose,
}

/// What a choice came to, beside the places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Chose {
    /// Something was left behind.
    pub left: bool,
    /// So much of the share of the lowest priority was given, or nothing has a lower one than the head.
    pub low: usize,
}

impl<P> Default for Walk<P> {
    fn default() -> Self {
        Self { after: None, rest_until: None, chose: Chose::default() }
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
    /// At most `limit` places of what may begin, in their order; first up to `low` of the lowest priority that waits. `look` reads so
    /// many from there.
    pub async fn choose<L: Future<Output = Result<Vec<Ahead<P>>, LedgerError>>>(
        &mut self,
        (limit, low): (usize, usize),
        room: impl Fn(&str) -> Option<usize>,
        look: impl Fn(Spot<P>, usize) -> L,
    ) -> Result<Vec<P>, LedgerError> {
        let near = look(Spot::Head, NEAR.max(limit)).await?;
        let mut chosen = Chosen { limit: low.min(limit), room, rooms: HashMap::new(), places: Vec::new(), low: 0 };
        let mut given = low;
        // Where all of it may be had there is nothing to share.
        if low > 0 && near.len() > limit {
            let first = near.first().map_or(i16::MIN, |ahead| ahead.rank);
            let lowest = look(Spot::Lowest, NEAR.max(low)).await?;
            if lowest.first().is_some_and(|ahead| ahead.rank > first) {
                lowest.into_iter().for_each(|ahead| chosen.offer(ahead));
                given = chosen.places.len();
            }
        }
        (chosen.limit, chosen.low) = (limit, chosen.places.len());
        let ahead = near.len();
        let end = near.last().filter(|_| near.len() == NEAR.max(limit)).map(|last| last.place.clone());
        near.into_iter().for_each(|ahead| chosen.offer(ahead));
        self.chose = Chose { left: end.is_some() || ahead > chosen.places.len(), low: given };
        let Some(end) = end else {
            self.after = None;
            return Ok(chosen.places);
        };
        if chosen.places.len() < limit && self.pause().is_zero() {
            let began = Instant::now();
            let far = look(Spot::Behind(self.after.take().unwrap_or_else(|| end.clone()).max(end)), FAR).await?;
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
    /// So many of these were chosen of the lowest priority, which may be met again.
    low: usize,
}

impl<P: Eq, R: Fn(&str) -> Option<usize>> Chosen<P, R> {
    fn offer(&mut self, ahead: Ahead<P>) {
        if self.places.len() == self.limit || self.places[..self.low].contains(&ahead.place) {
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
        let ahead = |place, kind: &str| Ahead { place, rank: 0, kind: kind.to_owned(), execute: true };
        (0..full).map(|n| ahead(n, "full")).chain([ahead(full, "free")]).collect()
    }

    async fn choose(walk: &mut Walk<usize>, line: &[Ahead<usize>], limit: usize) -> (Vec<usize>, usize) {
        let read = std::sync::atomic::AtomicUsize::new(0);
        let room = |kind: &str| (kind == "full").then_some(0);
        let look = |from: Spot<usize>, most: usize| {
            let from = match from {
                Spot::Behind(after) => after + 1,
                Spot::Head | Spot::Lowest => 0,
            };
            let found: Vec<_> = line.iter().skip(from).take(most).cloned().collect();
            read.fetch_add(found.len(), std::sync::atomic::Ordering::Relaxed);
            std::future::ready(Ok(found))
        };
        let chosen = walk.choose((limit, 0), room, look).await.unwrap();
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
            (0..8).map(|n| Ahead { place: n, rank: 0, kind: ["a", "b"][n % 2].to_owned(), execute: n != 6 }).collect();
        let room = |kind: &str| (kind == "a").then_some(1);
        let look = |_: Spot<usize>, _: usize| std::future::ready(Ok(line.clone()));
        let chosen = Walk::default().choose((5, 0), room, look).await.unwrap();
        assert_eq!(chosen, [0, 1, 3, 5, 6], "6 is a rehearsal");
    }

    #[tokio::test]
    async fn the_lowest_priority_has_its_share_and_nothing_is_chosen_twice() {
        let rank = |n: usize| if n < 10 { -5 } else { 7 };
        let line: Vec<_> =
            (0..20).map(|n| Ahead { place: n, rank: rank(n), kind: "a".to_owned(), execute: true }).collect();
        let look = |from: Spot<usize>, _: usize| {
            let from = if matches!(from, Spot::Lowest) { 10 } else { 0 };
            std::future::ready(Ok(line[from..].to_vec()))
        };
        let choose = async |limit, low, room: usize| {
            Walk::default().choose((limit, low), |_: &str| Some(room), look).await.unwrap()
        };
        assert_eq!(choose(4, 1, 100).await, [10, 0, 1, 2]);
        assert_eq!(
            choose(15, 2, 100).await,
            [[10, 11].as_slice(), &(0..10).collect::<Vec<_>>(), &[12, 13, 14]].concat()
        );
        assert_eq!(choose(4, 1, 2).await, [10, 0], "its kind has room for two");
        assert_eq!(choose(4, 0, 100).await, [0, 1, 2, 3]);
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
