//! The spool's file, and the one thread that writes it. What has gathered is written and synced together, and only then
//! answered: an answer means that it is on the disk.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::record::{self, DONE, ENTRY, Entry, GAP, OPENING, Record, TOLD, frame};
use super::{About, Gap, Held, Kept, Place, SpoolError, SpoolOptions};
use crate::metrics::Metrics;

/// Something to do for the thread.
pub(super) struct Job(pub(super) Ask);

type Answer<T> = oneshot::Sender<Result<T, String>>;

/// What it may be asked.
pub(super) enum Ask {
    Keep { about: About, bytes: Vec<u8>, answer: Answer<Kept> },
    Done { nos: Vec<u64>, answer: Answer<()> },
    GiveUp { no: u64, answer: Answer<()> },
    Told { gap: Gap, answer: Answer<()> },
    Read { no: u64, answer: Answer<Option<Entry>> },
}

/// So many are written together.
const TOGETHER: usize = 256;
/// A file is written anew when it is larger and mostly of what has been taken out.
const WORTH_IT: u64 = 4 << 20;

/// A process that ends lets go of its spool within this.
const LETS_GO: Duration = Duration::from_secs(2);

/// The file.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    /// Where the next record goes; what lies behind is of a write that failed.
    end: u64,
    /// Whether something may lie behind the end.
    torn: bool,
    held: Arc<Mutex<Held>>,
    options: SpoolOptions,
    metrics: Arc<Metrics>,
    /// Held for as long as the spool is open.
    _lock: File,
}

/// Whoever waits for a batch is told whether it is on the disk.
type Told = Box<dyn FnOnce(Result<(), String>) + Send>;

/// What a batch comes to once it is on the disk.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    changes: Vec<Change>,
    answers: Vec<Told>,
}

enum Change {
    Insert(u64, Place),
    Flying(u64),
    Remove(u64),
    Gap(Option<String>, u64),
    Told(Gap),
}

impl Log {
    /// Opens the file in `dir` and reads what is there.
    pub(super) fn open(
        dir: &Path,
        options: SpoolOptions,
        held: Arc<Mutex<Held>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SpoolError> {
        let path = dir.join("entries");
        let failed = |error: io::Error| SpoolError::Disk { path: path.clone(), reason: error.to_string() };
        fs::create_dir_all(dir).map_err(failed)?;
        let lock = dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock).map_err(failed)?;
        take(&lock).map_err(failed)?.then_some(()).ok_or_else(|| SpoolError::Taken { path: dir.to_owned() })?;
        let file = open_file(&path).map_err(failed)?;
        let mut log = Self { path: path.clone(), file, end: 0, torn: false, held, options, metrics, _lock: lock };
        log.load().map_err(failed)?;
        Ok(log)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Works until nobody can ask any more.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut asked = Vec::with_capacity(TOGETHER);
        loop {
            // All that has gathered while the last batch was synced.
            match jobs.blocking_recv() {
                Some(Job(ask)) => asked.push(ask),
                None => return,
            }
            while asked.len() < TOGETHER
                && let Ok(Job(ask)) = jobs.try_recv()
            {
                asked.push(ask);
            }
            self.together(std::mem::take(&mut asked));
        }
    }

    fn together(&mut self, asked: Vec<Ask>) {
        let mut batch = Batch::default();
        let mut room = Room::of(&self.held(), self.options);
        for ask in asked {
            match ask {
                Ask::Keep { about, bytes, answer } => self.keep(about, &bytes, answer, &mut batch, &mut room),
                Ask::Done { nos, answer } => {
                    batch.record(DONE, 0, &nos);
                    batch.changes.extend(nos.into_iter().map(Change::Remove));
                    batch.answers.push(Box::new(move |written| drop(answer.send(written))));
                }
                Ask::GiveUp { no, answer } => self.give_up(no, answer, &mut batch, &mut room),
                Ask::Told { gap, answer } => {
                    self.told(gap, &mut batch, &mut room);
                    batch.answers.push(Box::new(move |written| drop(answer.send(written))));
                }
                Ask::Read { no, answer } => drop(answer.send(self.read(no).map_err(|error| error.to_string()))),
            }
        }
        let written = self.write(&batch.bytes).map_err(|error| error.to_string());
        if written.is_ok() {
            self.apply(batch.changes);
        }
        batch.answers.into_iter().for_each(|answer| answer(written.clone()));
        if let Err(error) = self.tidy() {
            warn!(%error, path = %self.path.display(), "the spool's file can't be made smaller; it is tried again");
        }
    }

    fn keep(&self, about: About, bytes: &[u8], answer: Answer<Kept>, batch: &mut Batch, room: &mut Room) {
        let no = room.number();
        let kept = if room.takes(bytes.len() as u64) {
            let framed = frame(ENTRY, no, bytes);
            let (offset, length) = (self.end + batch.bytes.len() as u64, framed.len() as u64);
            batch.bytes.extend(framed);
            batch.changes.push(Change::Insert(no, Place { about, offset, length }));
            batch.changes.push(Change::Flying(no));
            Kept::Entry(no)
        } else {
            self.gap(no, Some(about.account), batch, room);
            Kept::Dropped
        };
        let held = self.held.clone();
        batch.answers.push(Box::new(move |written| {
            // Nobody waits any more, so nobody starts it.
            if let Err(Ok(Kept::Entry(no))) = answer.send(written.map(|()| kept)) {
                lock(&held).flying.remove(&no);
            }
        }));
    }

    fn give_up(&self, no: u64, answer: Answer<()>, batch: &mut Batch, room: &mut Room) {
        let account = self.held().entries.get(&no).map(|place| place.about.account.clone());
        if let Some(account) = account {
            let number = room.number();
            self.gap(number, Some(account), batch, room);
            batch.record(DONE, 0, &[no]);
            batch.changes.push(Change::Remove(no));
        }
        batch.answers.push(Box::new(move |written| drop(answer.send(written))));
    }

    /// A gap that is on the disk already costs nothing more, or a long outage would fill the disk with them.
    fn gap(&self, no: u64, account: Option<String>, batch: &mut Batch, room: &mut Room) {
        let on_disk = self.held().gaps.contains_key(&account) && !room.told.contains(&account);
        if room.gaps.insert(account.clone()) && !on_disk {
            batch.record(GAP, no, &account);
        }
        batch.changes.push(Change::Gap(account, no));
    }

    /// What has grown meanwhile stays, and Postgres is told again.
    fn told(&self, gap: Gap, batch: &mut Batch, room: &mut Room) {
        let grown =
            self.held().gaps.get(&gap.account).is_some_and(|no| *no > gap.no) || room.gaps.contains(&gap.account);
        if !grown {
            batch.record(TOLD, gap.no, &gap.account);
            room.told.insert(gap.account.clone());
            batch.changes.push(Change::Told(gap));
        }
    }

    /// Writes behind the end and syncs. What failed is cut off, so that no half of it is ever read.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.torn {
            self.file.set_len(self.end)?;
            self.torn = false;
        }
        self.torn = true;
        let written = self.file.write_all_at(bytes, self.end).and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.end += bytes.len() as u64;
                self.torn = false;
                Ok(())
            }
            Err(error) => {
                self.torn = self.file.set_len(self.end).and_then(|()| self.file.sync_data()).is_err();
                Err(error)
            }
        }
    }

    fn apply(&self, changes: Vec<Change>) {
        let mut held = self.held();
        for change in changes {
            match change {
                Change::Insert(no, place) => held.insert(no, place),
                Change::Flying(no) => drop(held.flying.insert(no)),
                Change::Remove(no) => drop(held.remove(no)),
                Change::Gap(account, no) => {
                    held.last = held.last.max(no);
                    held.gaps.insert(account, no);
                }
                Change::Told(gap) => drop(held.gaps.remove(&gap.account)),
            }
        }
    }

    fn read(&self, no: u64) -> io::Result<Option<Entry>> {
        let Some((offset, length)) = self.held().entries.get(&no).map(|place| (place.offset, place.length)) else {
            return Ok(None);
        };
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        match record::read(&bytes) {
            Some((Record::Entry(_, entry), _)) => Ok(Some(*entry)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("entry {no} can't be read any more"))),
        }
    }

    /// Makes the file smaller where most of it has been taken out.
    fn tidy(&mut self) -> io::Result<()> {
        let (live, empty) = {
            let held = self.held();
            (held.bytes, held.entries.is_empty() && held.gaps.is_empty())
        };
        let opening = OPENING.len() as u64;
        if empty && self.end > opening {
            self.file.set_len(opening)?;
            self.end = opening;
            return self.file.sync_data();
        }
        if self.end > WORTH_IT && live < self.end / 2 { self.rewrite() } else { Ok(()) }
    }

    /// Writes what is left into a new file and puts it in the old one's place.
    fn rewrite(&mut self) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&fresh)?;
        let mut end = OPENING.len() as u64;
        file.write_all_at(OPENING, 0)?;
        let (places, gaps): (Vec<_>, Vec<_>) = {
            let held = self.held();
            let places = held.entries.iter().map(|(no, place)| (*no, place.offset, place.length)).collect();
            (places, held.gaps.iter().map(|(account, no)| (account.clone(), *no)).collect())
        };
        let mut moved = Vec::with_capacity(places.len());
        for (no, offset, length) in places {
            let mut bytes = vec![0; length as usize];
            self.file.read_exact_at(&mut bytes, offset)?;
            file.write_all_at(&bytes, end)?;
            moved.push((no, end));
            end += length;
        }
        for (account, no) in gaps {
            let framed = frame(GAP, no, &json(&account));
            file.write_all_at(&framed, end)?;
            end += framed.len() as u64;
        }
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        let mut held = self.held();
        for (no, offset) in moved {
            if let Some(place) = held.entries.get_mut(&no) {
                place.offset = offset;
            }
        }
        drop(held);
        (self.file, self.end, self.torn) = (file, end, false);
        sync_folder(&self.path)
    }

    /// Reads the whole file. A torn end belongs to a write that nobody was answered to; damage before whole records is
    /// a gap in every account, and what is left of the file is kept aside for whoever wants to look.
    fn load(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        (&self.file).read_to_end(&mut bytes)?;
        if bytes.len() < OPENING.len() && OPENING.starts_with(&bytes) {
            self.file.set_len(0)?;
            self.file.write_all_at(OPENING, 0)?;
            self.file.sync_all()?;
            sync_folder(&self.path)?;
            self.end = OPENING.len() as u64;
            return Ok(());
        }
        let mut at = if bytes.starts_with(OPENING) { OPENING.len() } else { 0 };
        let mut damaged = at == 0;
        while !damaged && let Some((record, length)) = record::read(&bytes[at..]) {
            self.replay(record, at as u64, length as u64);
            at += length;
        }
        damaged |= at < bytes.len() && record::any_whole(&bytes[at..]);
        if damaged {
            let aside = self.path.with_extension(format!("damaged-{}", chrono::Utc::now().timestamp()));
            fs::write(&aside, &bytes)?;
            File::open(&aside)?.sync_all()?;
            error!(aside = %aside.display(), at, "the spool is damaged: what stands behind can't be read, so every account has a gap");
            self.metrics.outage.spool_dropped.with_label_values(&["damaged"]).inc();
        } else if at < bytes.len() {
            warn!(
                bytes = bytes.len() - at,
                "the end of the spool was torn by a crash; nobody had been answered for it"
            );
        }
        if at == 0 {
            self.file.write_all_at(OPENING, 0)?;
            at = OPENING.len();
        }
        self.end = at as u64;
        self.file.set_len(self.end)?;
        self.file.sync_all()?;
        sync_folder(&self.path)?;
        if damaged {
            let no = self.held().last + 1;
            self.write(&frame(GAP, no, &json(&None::<String>)))?;
            self.apply(vec![Change::Gap(None, no)]);
        }
        let held = self.held();
        if !held.entries.is_empty() || !held.gaps.is_empty() {
            info!(entries = held.entries.len(), gaps = held.gaps.len(), "an earlier process left work in the spool");
        }
        Ok(())
    }

    fn replay(&self, record: Record, offset: u64, length: u64) {
        let changes = match record {
            Record::Entry(no, entry) => vec![Change::Insert(no, Place { about: About::of(&entry), offset, length })],
            Record::Done(nos) => nos.into_iter().map(Change::Remove).collect(),
            Record::Gap(no, account) => vec![Change::Gap(account, no)],
            Record::Told(no, account) => vec![Change::Told(Gap { account, no })],
        };
        self.apply(changes);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        lock(&self.held)
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What still fits, while a batch is put together.
struct Room {
    entries: usize,
    bytes: u64,
    last: u64,
    options: SpoolOptions,
    /// Accounts that this batch finds a gap in.
    gaps: HashSet<Option<String>>,
    /// Those whose gap it takes out before that.
    told: HashSet<Option<String>>,
}

impl Room {
    fn of(held: &Held, options: SpoolOptions) -> Self {
        let (gaps, told) = Default::default();
        Self { entries: held.entries.len(), bytes: held.bytes, last: held.last, options, gaps, told }
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn takes(&mut self, bytes: u64) -> bool {
        let takes = self.entries < self.options.entries && self.bytes + bytes <= self.options.bytes;
        if takes {
            self.entries += 1;
            self.bytes += bytes;
        }
        takes
    }
}

impl Batch {
    fn record(&mut self, kind: u8, no: u64, body: &impl serde::Serialize) {
        self.bytes.extend(frame(kind, no, &json(body)));
    }
}

/// Numbers and names always have a text.
fn json(body: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_default()
}

/// Takes the lock. One who ends right now gives it up in a moment.
fn take(lock: &File) -> io::Result<bool> {
    let began = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(true),
            Err(fs::TryLockError::WouldBlock) if began.elapsed() < LETS_GO => std::thread::sleep(LETS_GO / 20),
            Err(fs::TryLockError::WouldBlock) => return Ok(false),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "is no file")),
    }
}

/// A new name is on the disk once its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
impl Log {
    /// From now on every write is refused.
    pub(super) fn break_for_test(&mut self, path: &Path) {
        self.file = OpenOptions::new().read(true).open(path).expect("it is there");
    }
}
