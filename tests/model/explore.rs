//! Explores every state of a story, breadth first, so that the first counterexample is a shortest one.
//!
//! `stateright` describes a story (its trait `Model`), and checks the same safety properties in a test of its own. It
//! can't check that something *can still end*: its `eventually` is judged at states without a successor only, so it misses
//! cycles, and loses what happened where two paths join. So the graph is kept here, and from the states where a goal is
//! reached all edges that need no fault and nobody from outside are walked backwards. A state that is not met then can
//! never reach the goal by the system's own steps: that is a deadlock or a livelock without a way out.

use std::fmt::Debug;
use std::hash::{Hash, Hasher};

use stateright::{Expectation, Model};

/// A model whose ends can be checked.
pub trait Story: Model<State: Copy + Eq + Hash + Debug, Action: Copy + Debug> {
    /// Whether the system, repaired where that is needed, takes this step by itself.
    fn is_progress(&self, action: &Self::Action) -> bool;
    /// Whether this step is there only for want of a guard.
    fn needs_a_broken_guard(&self, action: &Self::Action) -> bool;
    /// What can always be reached still, by progress alone.
    fn goals(&self) -> Vec<Goal<Self::State>>;
}

/// Where something has been reached.
pub struct Goal<S> {
    pub name: &'static str,
    pub reached: fn(&S) -> bool,
}

/// What an exploration found.
#[derive(Debug)]
pub struct Explored {
    pub states: usize,
    pub steps: usize,
    pub depth: usize,
    /// Actions that were never possible: with all guards on, a story that says nothing of them.
    pub untaken: Vec<String>,
    pub broken: Option<Broken>,
}

/// A property that fails, and a shortest way there.
#[derive(Debug)]
pub struct Broken {
    pub property: &'static str,
    pub trace: Vec<String>,
    pub last: String,
}

/// Explores all of `story`; stops at the first state that breaks a property, or beyond `bound` states by panicking.
pub fn explore<M: Story>(story: &M, bound: usize) -> Explored {
    let mut graph = Graph::default();
    let properties = story.properties();
    let mut actions = Vec::new();
    let mut steps = 0;
    let mut taken = Vec::new();
    for state in story.init_states() {
        graph.intern(state, NOWHERE, 0);
    }
    let mut at = 0;
    while at < graph.states.len() {
        let state = graph.states[at];
        for property in &properties {
            assert_eq!(property.expectation, Expectation::Always);
            if !(property.condition)(story, &state) {
                return graph.explored(steps, story, Some((property.name, at)));
            }
        }
        actions.clear();
        story.actions(&state, &mut actions);
        taken.resize(actions.len(), false);
        for (number, action) in actions.iter().enumerate() {
            let Some(next) = story.next_state(&state, *action) else { continue };
            steps += 1;
            taken[number] = true;
            let to = graph.intern(next, at as u32, number as u16);
            if to != at as u32 && story.is_progress(action) {
                graph.progress.push((at as u32, to));
            }
        }
        assert!(graph.states.len() <= bound, "more than {bound} states: the story is too large");
        at += 1;
    }
    let stuck = story.goals().into_iter().find_map(|goal| Some((goal.name, graph.stuck(goal.reached)?)));
    let untaken = actions.iter().zip(taken).filter(|(action, taken)| !taken && !story.needs_a_broken_guard(action));
    let untaken = untaken.map(|(action, _)| format!("{action:?}")).collect();
    Explored { untaken, ..graph.explored(steps, story, stuck) }
}

const NOWHERE: u32 = u32::MAX;

/// The states met, and how.
struct Graph<S> {
    states: Vec<S>,
    /// The state before and the number of the action, for the trace.
    from: Vec<(u32, u16)>,
    progress: Vec<(u32, u32)>,
    /// Numbers of states by hash, open addressing.
    table: Vec<u32>,
}

impl<S> Default for Graph<S> {
    fn default() -> Self {
        Self { states: Vec::new(), from: Vec::new(), progress: Vec::new(), table: vec![NOWHERE; 1 << 12] }
    }
}

impl<S: Copy + Eq + Hash + Debug> Graph<S> {
    fn intern(&mut self, state: S, from: u32, action: u16) -> u32 {
        let mask = self.table.len() - 1;
        let mut slot = hash(&state) as usize & mask;
        loop {
            let number = self.table[slot];
            if number == NOWHERE {
                break;
            }
            if self.states[number as usize] == state {
                return number;
            }
            slot = (slot + 1) & mask;
        }
        let number = self.states.len() as u32;
        self.table[slot] = number;
        self.states.push(state);
        self.from.push((from, action));
        if self.states.len() * 2 > self.table.len() {
            self.grow();
        }
        number
    }

    fn grow(&mut self) {
        let mask = self.table.len() * 2 - 1;
        self.table = vec![NOWHERE; mask + 1];
        for (number, state) in self.states.iter().enumerate() {
            let mut slot = hash(state) as usize & mask;
            while self.table[slot] != NOWHERE {
                slot = (slot + 1) & mask;
            }
            self.table[slot] = number as u32;
        }
    }

    /// The first state from which `reached` is out of reach.
    fn stuck(&self, reached: fn(&S) -> bool) -> Option<usize> {
        // Edges by their target: where each target's begin, and their sources.
        let mut begin = vec![0u32; self.states.len() + 1];
        for &(_, to) in &self.progress {
            begin[to as usize + 1] += 1;
        }
        for i in 1..begin.len() {
            begin[i] += begin[i - 1];
        }
        let mut sources = vec![0u32; self.progress.len()];
        let mut next = begin.clone();
        for &(from, to) in &self.progress {
            let place = &mut next[to as usize];
            sources[*place as usize] = from;
            *place += 1;
        }
        let mut met: Vec<bool> = self.states.iter().map(reached).collect();
        let mut open: Vec<u32> = (0..met.len() as u32).filter(|&i| met[i as usize]).collect();
        while let Some(at) = open.pop() {
            let at = at as usize;
            for &source in &sources[begin[at] as usize..begin[at + 1] as usize] {
                if !met[source as usize] {
                    met[source as usize] = true;
                    open.push(source);
                }
            }
        }
        met.iter().position(|met| !met)
    }

    fn explored<M: Story<State = S>>(
        &self,
        steps: usize,
        story: &M,
        broken: Option<(&'static str, usize)>,
    ) -> Explored {
        let depth = self.trace(story, self.states.len() - 1).len();
        let broken = broken.map(|(property, at)| Broken {
            property,
            trace: self.trace(story, at),
            last: format!("{:?}", self.states[at]),
        });
        Explored { states: self.states.len(), steps, depth, untaken: Vec::new(), broken }
    }

    fn trace<M: Story<State = S>>(&self, story: &M, mut at: usize) -> Vec<String> {
        let mut trace = Vec::new();
        while self.from[at].0 != NOWHERE {
            let (before, number) = self.from[at];
            let mut actions = Vec::new();
            story.actions(&self.states[before as usize], &mut actions);
            trace.push(format!("{:?}", actions[number as usize]));
            at = before as usize;
        }
        trace.reverse();
        trace
    }
}

/// Multiply and rotate: states are small, and the standard hash costs more than a step.
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }
    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

fn hash<T: Hash>(value: &T) -> u64 {
    let mut mix = Mix(0);
    value.hash(&mut mix);
    mix.finish()
}
