//! Follows the flags file. A thread of its own, because all it does is wait, read and write files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::in_force::InForce;
use super::store::{self, LastGood};

/// Who writes in place empties the file first; a look in between would report a fault that is gone at once.
const SETTLE: Duration = Duration::from_millis(20);
/// A poll interval of nothing would spin.
const SHORTEST_POLL: Duration = Duration::from_millis(10);

/// The thread; dropping it ends it.
pub(super) struct Watcher {
    wake: Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

enum Wake {
    Look,
    Stop,
}

impl Watcher {
    /// Looks at the file once, so that the health is right from the start, and then follows it.
    pub(super) fn start(file: &Path, last_good: LastGood, in_force: Arc<InForce>, poll: Duration) -> Self {
        let (wake, wakes) = mpsc::channel();
        // Before the first look: a change between the two would go unseen until the next poll.
        let notifier = notifier(file, wake.clone());
        let mut follower = Follower { file: file.to_owned(), last_good, in_force, unsaved: true };
        follower.look();
        let thread = thread::Builder::new().name("flags".to_owned()).spawn(move || {
            let _notifier = notifier;
            while woken(&wakes, poll.max(SHORTEST_POLL)) {
                follower.look();
            }
        });
        // A process that can't start a thread can't start a runtime either.
        Self { wake, thread: Some(thread.expect("a thread to follow the flags file")) }
    }
}

impl Drop for Watcher {
    /// Waits for the thread, so that it never stores a document behind the back of a successor.
    fn drop(&mut self) {
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for a reason to look; false when it is over.
fn woken(wakes: &Receiver<Wake>, poll: Duration) -> bool {
    match wakes.recv_timeout(poll) {
        Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        Err(RecvTimeoutError::Timeout) => return true,
        Ok(Wake::Look) => {}
    }
    let settled = Instant::now() + SETTLE;
    while let Ok(wake) = wakes.recv_timeout(settled.saturating_duration_since(Instant::now())) {
        if matches!(wake, Wake::Stop) {
            return false;
        }
    }
    true
}

/// Watches the directory rather than the file: a replaced file is another file, and so is a mounted one whose
/// directory link was turned. Without it there still is the poll.
fn notifier(file: &Path, wake: Sender<Wake>) -> Option<RecommendedWatcher> {
    let look = move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| is_a_change(&event.kind)) {
            let _ = wake.send(Wake::Look);
        }
    };
    let watching = notify::recommended_watcher(look).and_then(|mut notifier| {
        notifier.watch(store::dir_of(file), RecursiveMode::NonRecursive)?;
        Ok(notifier)
    });
    watching.inspect_err(|error| tracing::warn!("{}: changes are only seen by polling: {error}", file.display())).ok()
}

/// Our own reading is an access, too, and must not wake us.
fn is_a_change(kind: &EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if *access != AccessKind::Close(AccessMode::Write))
}

struct Follower {
    file: PathBuf,
    last_good: LastGood,
    in_force: Arc<InForce>,
    /// The document in force hasn't been stored yet.
    unsaved: bool,
}

impl Follower {
    fn look(&mut self) {
        match self.follow() {
            Ok(()) => self.in_force.mended(),
            Err(error) => self.in_force.failed(error),
        }
    }

    /// A good document is in force first and stored then: a full disk must not delay a rollback.
    fn follow(&mut self) -> Result<(), String> {
        let text = store::read(&self.file)?;
        if self.in_force.is_from_file(&text) {
            self.in_force.confirmed();
        } else {
            let document = store::check(&self.file, text)?;
            self.in_force.put(document);
            self.unsaved = true;
        }
        if self.unsaved {
            self.last_good.store(&self.in_force.document())?;
            self.unsaved = false;
        }
        Ok(())
    }
}
