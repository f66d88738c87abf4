//! Takes tasks in. What comes while a statement is on its way goes together with the next one, so that many callers share
//! a commit: one alone waits for nobody.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};
use uuid::Uuid;

use super::share::Shares;
use crate::ledger::{LedgerError, transient};
use crate::queue::tasks::{NewTask, Tasks};

/// Where tasks gather. Cheap to clone.
#[derive(Clone)]
pub(super) struct Gather(Arc<Inner>);

struct Inner {
    tasks: Tasks,
    waiting: Mutex<Waiting>,
    /// Statements on their way.
    statements: Arc<Semaphore>,
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<Item>,
    shares: Shares,
    /// When virtual time was last asked for.
    asked: Option<Instant>,
    /// When weights were.
    weighed: Option<Instant>,
}

struct Item {
    task: NewTask,
    /// It may be there already.
    repeated: bool,
    answer: oneshot::Sender<Result<bool, LedgerError>>,
}

/// Two wait for the disk while one is read; more would only make batches smaller.
const STATEMENTS: usize = 3;
/// A statement has at most so many.
const BATCH: usize = 500;
/// Virtual time is asked for so often while tasks come.
const ASK: Duration = Duration::from_millis(200);
/// And weights and groups with limits so often, which are in force within a second.
const WEIGH: Duration = Duration::from_millis(800);

impl Gather {
    pub(super) fn new(tasks: Tasks) -> Self {
        let statements = Arc::new(Semaphore::new(STATEMENTS));
        Self(Arc::new(Inner { tasks, waiting: Mutex::default(), statements }))
    }

    /// The tasks behind it.
    pub(super) fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// Takes a task in; its virtual start time is set here. False: it is there already, or its account is not armed. Bounded by
    /// the caller, of whom there are only so many.
    pub(super) async fn enqueue(&self, task: NewTask, repeated: bool) -> Result<bool, LedgerError> {
        let (answer, mut answered) = oneshot::channel();
        self.0.lock().queue.push_back(Item { task, repeated, answer });
        let gone = |_| LedgerError::InDoubt("the statement that had it was given up".to_owned());
        let place = tokio::select! {
            biased;
            answer = &mut answered => return answer.map_err(gone)?,
            place = self.0.statements.clone().acquire_owned() => place,
        };
        let inner = self.0.clone();
        // It goes on without its caller, for it may carry others' tasks.
        tokio::spawn(async move {
            let _place = place;
            inner.write().await;
        });
        answered.await.map_err(gone)?
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what waits, until nothing does.
    async fn write(self: Arc<Self>) {
        loop {
            self.look_at_weights();
            self.look_at_virtual_time().await;
            let batch = self.take();
            if batch.is_empty() {
                return;
            }
            self.write_batch(batch).await;
        }
    }

    async fn look_at_virtual_time(&self) {
        if self.lock().asked.is_some_and(|asked| asked.elapsed() < ASK) {
            return;
        }
        self.lock().asked = Some(Instant::now());
        // Without an answer accounts share by what was known before.
        if let Ok(now) = self.tasks.virtual_time(0).await {
            self.lock().shares.advance(now);
        }
    }

    /// Reads the weights, and how far groups with limits have come, beside the work: nobody's task waits for them.
    fn look_at_weights(self: &Arc<Self>) {
        let mut waiting = self.lock();
        if waiting.weighed.is_some_and(|weighed| weighed.elapsed() < WEIGH) {
            return;
        }
        waiting.weighed = Some(Instant::now());
        drop(waiting);
        let inner = self.clone();
        tokio::spawn(async move {
            // Without an answer accounts count as much as before.
            if let Ok(weights) = inner.tasks.groups().weights().await {
                inner.lock().shares.weigh(weights.into_iter().map(|w| (w.account, w.weight)).collect());
            }
            if let Ok(limited) = inner.tasks.groups().virtual_times().await {
                inner.lock().shares.limited(limited);
            }
        });
    }

    /// The next batch, stamped. What its caller no longer waits for was never accepted.
    fn take(&self) -> Vec<Item> {
        let mut waiting = self.lock();
        let Waiting { queue, shares, .. } = &mut *waiting;
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(mut item) = queue.pop_front()
        {
            if !item.answer.is_closed() {
                item.task.vt = shares.stamp(&item.task.account, item.task.group.as_deref().unwrap_or("default"));
                batch.push(item);
            }
        }
        batch
    }

    async fn write_batch(&self, batch: Vec<Item>) {
        let repeated = batch.iter().any(|item| item.repeated);
        let (tasks, answers): (Vec<NewTask>, Vec<_>) = batch.into_iter().map(|item| (item.task, item.answer)).unzip();
        let taken = match repeated {
            // The shorter way would be gone in vain.
            true => self.tasks.enqueue_any(&tasks).await,
            false => self.tasks.enqueue(&tasks).await,
        };
        match taken {
            Ok(new) => tell(&tasks, answers, &new),
            Err(LedgerError::Refused(error)) if !transient(&error) && tasks.len() > 1 => {
                // One of them can't be stored. Alone, each shows whether it is the one.
                for (task, answer) in tasks.into_iter().zip(answers) {
                    let alone = self.tasks.enqueue(std::slice::from_ref(&task)).await;
                    let _ = answer.send(alone.map(|new| new.contains(&task.id)));
                }
            }
            Err(error) => answers.into_iter().for_each(|answer| drop(answer.send(Err(same(&error))))),
        }
    }
}

/// Whoever has gone away is not told.
fn tell(tasks: &[NewTask], answers: Vec<oneshot::Sender<Result<bool, LedgerError>>>, new: &[Uuid]) {
    let new: std::collections::HashSet<&Uuid> = new.iter().collect();
    for (task, answer) in tasks.iter().zip(answers) {
        let _ = answer.send(Ok(new.contains(&task.id)));
    }
}

/// The same for another caller.
fn same(error: &LedgerError) -> LedgerError {
    let text = |error: &sqlx::Error| sqlx::Error::Io(std::io::Error::other(error.to_string()));
    match error {
        LedgerError::Unreachable(error) => LedgerError::Unreachable(text(error)),
        LedgerError::InDoubt(reason) => LedgerError::InDoubt(reason.clone()),
        LedgerError::Refused(error) => LedgerError::Refused(text(error)),
    }
}
