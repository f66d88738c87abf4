//! The guards of the protocol: each sentence of it that can be left out, with the failure that it stops.

macro_rules! guards {
    ($($name:ident in $story:literal: $says:literal, $stops:literal;)*) => {
        /// A rule of the protocol, with a switch.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Guard { $($name),* }

        impl Guard {
            pub const ALL: &[Guard] = &[$(Guard::$name),*];

            /// The story that fails without it.
            pub fn story(self) -> &'static str {
                match self { $(Guard::$name => $story),* }
            }

            /// The rule.
            pub fn says(self) -> &'static str {
                match self { $(Guard::$name => $says),* }
            }

            /// What happens without it.
            pub fn stops(self) -> &'static str {
                match self { $(Guard::$name => $stops),* }
            }
        }
    };
}

guards! {
    // Enqueue.
    FirstInsertWins in "enqueue":
        "The first insert of a key is its pin; whoever comes later gets that one, whatever flags it saw",
        "Two routers with different flags pin one key to both sides, and both run it";
    OnlyArmedOwns in "enqueue":
        "A pin's owner is Postgres only if its own transaction sees the account armed",
        "A key that was started unpinned is pinned to Postgres: both sides run it";
    AccountLock in "enqueue":
        "Marking, arming and pinning of an account exclude each other by its lock",
        "A router asks for the mark, the account is armed by its first live pin, the mark commits: the key runs unpinned beside its pin";
    MarkBeforeUnpinned in "enqueue":
        "The mark of unpinned work commits before the first unpinned start",
        "The first live pin arms an account whose key Temporal already runs";
    MarkIsForgotten in "disarm":
        "A router remembers the mark only until the account's state changes",
        "An account is armed, disarmed and armed on the spot, while a router starts unpinned on the strength of the old mark";
    OutboxInThePin in "enqueue":
        "The pin's transaction writes the outbox row of the Temporal copy",
        "The router dies after the commit: nobody ever starts what Temporal owns";
    UseExisting in "enqueue":
        "A start of a workflow id that is open uses the one that is there",
        "A repeated start replaces the copy that runs: two effects with one fence";
    RejectDuplicate in "enqueue":
        "A start of a workflow id that has closed is refused",
        "A repeated delivery runs again what had ended";
    LookBeforeRelay in "handover":
        "The relay looks whether the pin has ended before it delivers",
        "An outbox row is replayed after Temporal forgot the workflow: it runs a second time with the same fence";
    MemoMustAgree in "enqueue":
        "A copy that is there counts as delivered only if owner, epoch and payload of its memo are the pin's",
        "A key started unpinned with one payload is pinned with another: the pin says succeeded of work that never ran";
    AdoptUnpinned in "enqueue":
        "A delivery that finds the unpinned copy makes it pinned, or takes over its end",
        "The copy closes without a word, and the pin never ends";
    DeliveredByEpoch in "fences":
        "A delivery takes out the outbox row of its own epoch only",
        "The rehearsal's late receipt takes out the row of the handed over copy: nobody runs it";
    CancelStaysInOutbox in "handover":
        "A delivery of the copy as it was never takes out a cancellation",
        "The cancellation is lost on its way";
    OnlyRehearsalsAreDropped in "fences":
        "Only a rehearsal's row is ever dropped from the outbox",
        "What Temporal owns is dropped with the backlog, and never runs";
    PinsOutlastKeys in "enqueue":
        "A pin is kept until its key is past repeating",
        "The key is repeated, pinned anew, and run again";
    EveryKindPins in "arming":
        "Once arming has begun every enqueue of every kind pins, in `off` too",
        "A kind in `off` starts unpinned after the window: its key is repeated live and runs on Postgres as well";

    // The envelope.
    ResetAsks in "handover":
        "A run made by a reset asks its pin before it runs",
        "An operator resets a workflow whose interaction has ended: it runs again after its end";
    ResetKeepsCounting in "handover":
        "A run made by a reset goes on with the attempts' numbers",
        "Both runs call with the fence 1.1: the runner can't refuse the older one";
    UnpinnedAsks in "lag":
        "Where its account is closing or armed, an unpinned copy inserts a Temporal pin and runs only if the pin is its own",
        "An unpinned workflow that the listing did not show yet runs without a pin on an armed account";
    AskingHoldsAnother in "lag":
        "An unpinned copy that finds a Temporal pin of its key with another payload holds that pin, and runs",
        "It gives up, the pin's copy is refused beside it, and neither runs";
    WorkersAcknowledge in "lag":
        "Temporal workers are in the barrier too: they acknowledge that unpinned copies ask",
        "A worker that was cut off since the window runs an unpinned copy of an armed account without asking";
    SettleBeforeClose in "enqueue":
        "A workflow closes only after its end is in the pin",
        "The workflow closes, the end is lost with the worker, and the pin never ends";
    Sweep in "handover":
        "What Temporal should long have ended is delivered again, and so is found to have been ended by hand",
        "An operator terminates a workflow: its pin never ends";

    // Postgres away, and arming.
    ArmedRefuses in "failing-open":
        "From `closing` on a router that can't reach Postgres refuses",
        "A router fails open a key that another pins to Postgres";
    SpoolBeforeStart in "failing-open":
        "What fails open is on disk before its start is sent",
        "A router dies between start and spool, comes back with nothing to report, and the key is repeated on Postgres";
    WindowPasses in "arming":
        "A whole idempotency window passes between pinning and closing",
        "A key first started unpinned is repeated when the account is armed, and runs on Postgres as well";
    DropRestartsWindow in "failing-open":
        "A dropped spool entry begins the window again",
        "A key ran unpinned, its record was dropped, and it is repeated on Postgres";
    PinTimesOut in "failing-open":
        "A pin's transaction that hangs is rolled back by Postgres before a window has passed",
        "A router fails open while its pin hangs; when the account is armed the pin commits, and Postgres runs the key as well";
    ForgetRestartsWindow in "failing-open":
        "To forget a registration that has not acknowledged `closing` begins the window again, and withdraws its waiver",
        "What the forgotten router failed open has no record: it is repeated on Postgres";
    ForgottenDiskIsVoid in "failing-open":
        "A registration is forgotten only once its disk is too old to be used, or gone",
        "A forgotten router starts again without Postgres and fails open: what it runs has no record when the account is armed";
    AckIsTakenBack in "failing-open":
        "A router that reads that it may fail open again takes back what it acknowledged, in the same transaction",
        "A router acknowledged `closing`, went back to failing open, and the barrier passes on its old word";
    DeregistersClean in "failing-open":
        "A router takes back its registration only with an empty spool and no unpinned start under way",
        "A router is stopped with what it failed open on its disk: nobody waits for it, and the key is repeated on Postgres";
    BarrierWaitsForSilent in "arming":
        "A barrier waits for every registered router, above all for the silent",
        "The router that can't reach Postgres fails open after the others have armed the account";
    AckWaitsForStarts in "arming":
        "A router acknowledges only when every unpinned start of its own has a definite answer",
        "A start that was under way when its router acknowledged runs unpinned once the account is armed";
    AckWaitsForEcho in "arming":
        "A router that was cut off acknowledges only when the starts of its earlier life have arrived or timed out",
        "A start of the killed process runs unpinned once the account is armed";
    AckWaitsForSpool in "failing-open":
        "A router acknowledges `closing` only with an empty spool",
        "What ran unpinned gets its pin too late: the key was repeated on Postgres";
    RegisterBeforeTraffic in "arming":
        "A router takes no traffic before it has registered and read the account's state, or has both on disk",
        "A new router takes an armed account for one in `off` and starts unpinned";
    LevelOnDisk in "failing-open":
        "What a router acknowledges is on its disk before",
        "A router that acknowledged restarts while Postgres is away, and fails open again";
    Reconcile in "arming":
        "Open unpinned workflows get a Temporal pin before the account is armed",
        "Old work runs without a pin on an armed account";
    DisarmDrains in "series-arming":
        "An account is disarmed only when Postgres owns nothing unended of it",
        "A member waits with Postgres, the next one starts unpinned: it overtakes, and they overlap";
    DisarmWindow in "disarm":
        "A whole window passes before an account is open again",
        "A key that Postgres ran is repeated in `off`, and Temporal runs it";
    DisarmingOwnsNothing in "disarm":
        "While an account is disarmed Postgres gets nothing new",
        "A key of the last moment is Postgres's when the account opens, and starts unpinned too";

    // Handover, cancel, retention.
    HandoverOnlyUnclaimed in "handover":
        "Only what was never claimed is handed over",
        "The worker that claimed it and Temporal both run it";
    HandoverNewEpoch in "handover":
        "A handover raises the epoch, and so the workflow's id",
        "The new copy meets the rehearsal under its own id, and never runs";
    ClaimIsASwap in "handover":
        "A claim takes the row that it reads, in one statement",
        "A worker claims what was handed over since it looked: both sides run it";
    CancelBeatsRetry in "fences":
        "A claim and a retry read the cancellation in their own statement",
        "What was cancelled while it ran is run again";
    RetentionOutlasts in "handover":
        "Temporal keeps a closed workflow for longer than keys are repeated and deliveries wait",
        "A start that is repeated late finds nothing, and runs the work again";

    // Fences.
    FinishIsFenced in "fences":
        "A finish needs the worker and attempt that hold the row",
        "The late result of a stalled worker ends what another is running";
    TakeoverCounts in "fences":
        "What is taken over gets a new attempt number",
        "Both workers call the runner with one fence";

    // Series.
    NumbersUnderLock in "series":
        "A member takes its number under the lock of its series' row, until its pin commits",
        "Two members get one number, are both the head, and run at once";
    OnlyTheHeadIsPlaced in "series":
        "Only a member before which everything has ended has a place in the queue",
        "Postgres runs a member beside the one before it";
    EndPlacesTheNext in "series":
        "An end moves the head and places the next member, in one transaction",
        "The next member waits for ever";
    DeliverInOrder in "series":
        "Copies reach the series' workflow in the order of their numbers",
        "Temporal runs a later member first";
    UnpinnedWaitsForOutbox in "series-arming":
        "Nothing of a series starts unpinned while pinned copies of it wait to be delivered",
        "A flip to `off`: the next member overtakes what is in the outbox";
    SeriesRemembers in "series":
        "The series' workflow drops a copy that it had before",
        "A delivery that arrives twice runs twice";
    ContinuesWithEverything in "series-arming":
        "The series' workflow handles every signal before it continues as new",
        "A signal that came with the last step is lost";
    OneAtATime in "series":
        "The series' workflow begins a copy when the one before it has ended",
        "Temporal forgets what it was at: the member never ends";
    BehindWaits in "series":
        "An execution on Temporal waits until what is behind it has ended on Postgres",
        "After a rollback Temporal runs a member beside the one that Postgres still runs";
    BehindMeansHead in "series":
        "An execution that has anything behind it waits until it is the head of its series, not only for those that it names",
        "The named members are cancelled out of their turn, and the copy runs before an earlier one";
    HandedOverWaitsBehind in "series":
        "A copy that was handed over names what is behind it at that moment",
        "It runs beside an earlier member that stayed with Postgres";
    HandoverKeepsItsPlace in "series":
        "A copy that was handed over goes before everything of a higher number that waits; its rehearsal goes",
        "A later member waits for it at the head of the workflow that has it in the queue: a deadlock";
    WaitingLetsPass in "series":
        "What has its turn and still waits, a rehearsal too, lets a handed over copy of a lower number pass",
        "A later member has the turn and waits for the one behind it in the queue: a deadlock";
    RehearsalsKeepTheChain in "series":
        "A rehearsal that ends, is bounded or dropped never moves the head",
        "Postgres begins a member beside the one that Temporal runs";
    SeriesIsReconciled in "series-arming":
        "What a series' workflow has without a pin gets pins and numbers before the account is armed",
        "Postgres begins a member beside one that Temporal has from before";
    SeriesIsAskedByUpdate in "series-arming":
        "A series' workflow is asked by an update, which comes after every signal before it",
        "A signal that waits is overlooked: its member has no number, and is overtaken";
}

/// Which guards stand.
#[derive(Clone, Copy, Debug)]
pub struct Guards(u128);

impl Guards {
    pub const ALL: Self = Self(u128::MAX);

    pub fn has(self, guard: Guard) -> bool {
        self.0 & 1 << guard as u8 != 0
    }

    pub fn without(self, guard: Guard) -> Self {
        Self(self.0 & !(1 << guard as u8))
    }
}
