//! Where an image comes from: the same store on one or more servers, none of which is trusted, and any of which may be slow,
//! gone, or lying.
//!
//! Every chunk is asked of the server that has been fastest; one that nobody knows yet is tried. A server that fails rests
//! a little longer each time, and one that failed too often in a row, that hasn't got the file, or that twice gave a chunk
//! whose hash is wrong or a manifest that isn't the one that is meant, isn't asked again; each of these is told by its name. When nobody is left, the install ends with
//! what each of them did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drophammer_protocol::manifest::{Chunk, MANIFEST_FILE, MAX_MANIFEST_BYTES, PACKS, Pack};
use reqwest::blocking::Client;
use sha2::{Digest, Sha256};

use super::fetch::{self, Patience, Ranged, Trouble, Whole};

/// What a request may take beside the time that the fastest server would need for it, when there's another to ask.
const SLACK: Duration = Duration::from_secs(5);
/// How much slower than the fastest an answer may come before it's left for another.
const SLOWER: f64 = 5.0;
/// How often one server may give something wrong: a bit that flipped on the way is worth a second look, a damaged
/// file isn't worth a third.
const LIES: u32 = 2;

pub(crate) struct Sources<'a> {
    http: &'a Client,
    stores: Vec<Store>,
    patience: Patience,
    /// Told of every interruption.
    interrupted: &'a (dyn Fn(String) + Sync),
    /// Bytes that came over the network, whether they were of use or not.
    fetched: AtomicU64,
    also: Option<Also<'a>>,
}

/// What is done besides with a chunk, packed as it is.
type Also<'a> = &'a (dyn Fn(&[u8]) + Sync);

struct Store {
    url: String,
    state: Mutex<State>,
    /// What is left of the answer of a server that doesn't know ranges, and the pack that it's of.
    stream: Mutex<Option<(u32, Whole)>>,
}

#[derive(Default)]
struct State {
    /// Why it isn't asked any more.
    out: Option<String>,
    /// Failures since the last success.
    fruitless: u32,
    rests_until: Option<Instant>,
    /// Bytes a second.
    rate: Option<f64>,
    knows_no_ranges: bool,
}

impl std::fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stores: Vec<&str> = self.stores.iter().map(|store| store.url.as_str()).collect();
        f.debug_struct("Sources").field("stores", &stores).finish_non_exhaustive()
    }
}

impl<'a> Sources<'a> {
    pub(crate) fn new(
        http: &'a Client,
        stores: &[String],
        patience: Patience,
        interrupted: &'a (dyn Fn(String) + Sync),
    ) -> Self {
        let stores = stores
            .iter()
            .map(|url| Store {
                url: url.trim_end_matches('/').to_owned(),
                state: Mutex::default(),
                stream: Mutex::default(),
            })
            .collect();
        Self { http, stores, patience, interrupted, fetched: AtomicU64::new(0), also: None }
    }

    /// Does more with each chunk that is as it was signed, packed as it is: how much more time that takes is for
    /// [`super::bench`] to say.
    pub(super) fn also_with_each_chunk(&mut self, also: Also<'a>) {
        self.also = Some(also);
    }

    pub(crate) fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Whether only servers are left that send a file from its start: then nobody should ask out of order.
    pub(crate) fn know_no_ranges(&self) -> bool {
        self.stores.iter().all(|store| {
            let state = store.state();
            state.out.is_some() || state.knows_no_ranges
        })
    }

    /// The manifest of `image`, from the first server whose copy `open` accepts.
    pub(crate) fn manifest<T>(&self, image: &str, open: impl Fn(&[u8]) -> Result<T, String>) -> anyhow::Result<T> {
        let mut lies = Lies::of(&self.stores);
        self.persist(&format!("the manifest of {image}"), 0, |store, _| {
            let url = format!("{}/{image}/{MANIFEST_FILE}", store.url);
            let bytes = fetch::whole(self.http, &url, MAX_MANIFEST_BYTES, self.patience)?;
            self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            open(&bytes).map_err(|why| lies.told(store, anyhow::anyhow!(why), "it has no good copy of it"))
        })
    }

    /// A chunk as it's packed, its hash checked. `name` is what people call it.
    pub(crate) fn chunk(&self, pack: &Pack, chunk: &Chunk, name: &str, frame: &mut Vec<u8>) -> anyhow::Result<()> {
        frame.resize(usize::try_from(chunk.length)?, 0);
        let mut lies = Lies::of(&self.stores);
        self.persist(name, chunk.length.into(), |store, limit| {
            self.part(store, pack, chunk, frame, limit)?;
            let got = hex::encode(Sha256::digest(&frame));
            if got == chunk.sha256 {
                if let Some(also) = self.also {
                    also(frame);
                }
                return Ok(());
            }
            let what = anyhow::anyhow!("{name} came with SHA-256 {got}, the manifest says {}", chunk.sha256);
            Err(lies.told(store, what, "it has a damaged copy of the image: publish it there again"))
        })
    }

    fn part(
        &self,
        store: &Store,
        pack: &Pack,
        chunk: &Chunk,
        frame: &mut [u8],
        limit: Option<Duration>,
    ) -> Result<(), Trouble> {
        let url = format!("{}/{PACKS}/{}", store.url, pack.sha256);
        if !store.state().knows_no_ranges {
            match fetch::range(self.http, &url, pack.bytes, chunk.offset, frame, limit, self.patience, &self.fetched)? {
                Ranged::Part => return Ok(()),
                // A first answer of this kind is of no use to whoever comes second.
                Ranged::Whole(whole) => {
                    store.state().knows_no_ranges = true;
                    // One that ends when time is up for a chunk isn't of use for a whole pack.
                    let lasting = limit.is_none().then_some((chunk.pack, whole));
                    *store.stream.lock().unwrap_or_else(PoisonError::into_inner) = lasting;
                }
            }
        }
        let mut stream = store.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = |(number, whole): &(u32, Whole)| *number == chunk.pack && whole.reaches(chunk.offset);
        let (number, mut whole) = match stream.take().filter(usable) {
            Some(open) => open,
            None => (chunk.pack, fetch::from_start(self.http, &url, self.patience)?),
        };
        whole.read(chunk.offset, frame, &self.fetched)?;
        *stream = Some((number, whole));
        Ok(())
    }

    /// Asks one server after the other until one has given `what`.
    fn persist<T>(
        &self,
        what: &str,
        bytes: u64,
        mut ask: impl FnMut(&Store, Option<Duration>) -> Result<T, Trouble>,
    ) -> anyhow::Result<T> {
        loop {
            let store = self.choose().ok_or_else(|| self.nobody_left(what))?;
            let began = Instant::now();
            match ask(store, self.limit(store, bytes)) {
                Ok(got) => {
                    store.succeeded(bytes, began.elapsed());
                    return Ok(got);
                }
                Err(trouble) => {
                    let said = store.failed(trouble, self.patience);
                    (self.interrupted)(format!("{what} from {}: {said}", store.url));
                }
            }
        }
    }

    /// The one to ask next, after waiting for one to have rested if need be.
    fn choose(&self) -> Option<&Store> {
        loop {
            let now = Instant::now();
            let (mut best, mut first_rested): (Option<(&Store, f64)>, Option<Instant>) = (None, None);
            for store in &self.stores {
                let state = store.state();
                if state.out.is_some() {
                    continue;
                }
                if let Some(until) = state.rests_until.filter(|until| *until > now) {
                    first_rested = Some(first_rested.map_or(until, |first| first.min(until)));
                    continue;
                }
                // One that nobody knows is tried before the best of the known.
                let rate = state.rate.unwrap_or(f64::INFINITY);
                if best.is_none_or(|(_, other)| rate > other) {
                    best = Some((store, rate));
                }
            }
            match (best, first_rested) {
                (Some((store, _)), _) => return Some(store),
                (None, Some(until)) => std::thread::sleep(until.saturating_duration_since(now)),
                (None, None) => return None,
            }
        }
    }

    /// How long an answer is waited for: without end, but for its silence, where nobody else can be asked.
    fn limit(&self, asked: &Store, bytes: u64) -> Option<Duration> {
        let others = self.stores.iter().filter(|store| !std::ptr::eq(*store, asked));
        let usable = others.filter(|store| store.state().out.is_none());
        let fastest = usable.map(|store| store.state().rate).reduce(|a, b| match (a, b) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        })?;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = fastest.filter(|rate| *rate > 0.0).map_or(0.0, |rate| SLOWER * bytes as f64 / rate);
        // A server so slow that the time overflows is no reason to give up on another.
        Some(SLACK + Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(3600)))
    }

    fn nobody_left(&self, what: &str) -> anyhow::Error {
        let reasons: Vec<String> = self
            .stores
            .iter()
            .map(|store| format!("{}: {}", store.url, store.state().out.as_deref().unwrap_or("not asked")))
            .collect();
        match reasons.as_slice() {
            [] => anyhow::anyhow!("fetching {what}: the order names no store"),
            reasons => anyhow::anyhow!("fetching {what} from {}", reasons.join("; and from ")),
        }
    }
}

/// How often each server gave something wrong in place of one thing.
struct Lies<'a> {
    stores: &'a [Store],
    told: Vec<u32>,
}

impl<'a> Lies<'a> {
    fn of(stores: &'a [Store]) -> Self {
        Self { stores, told: vec![0; stores.len()] }
    }

    /// Counts another; `once_more` is what it means if that was one too many.
    fn told(&mut self, by: &Store, what: anyhow::Error, once_more: &'static str) -> Trouble {
        let number = self.stores.iter().position(|store| std::ptr::eq(store, by));
        match number.and_then(|number| self.told.get_mut(number)) {
            Some(told) if *told + 1 < LIES => {
                *told += 1;
                Trouble::Passing(what)
            }
            _ => Trouble::Final(what.context(once_more)),
        }
    }
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn succeeded(&self, bytes: u64, took: Duration) {
        let mut state = self.state();
        state.fruitless = 0;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let now = bytes as f64 / took.as_secs_f64().max(1e-6);
        if bytes > 0 {
            state.rate = Some(state.rate.map_or(now, |before| f64::midpoint(before, now)));
        }
    }

    /// What is to be said of it.
    fn failed(&self, trouble: Trouble, patience: Patience) -> String {
        let mut state = self.state();
        match trouble {
            Trouble::Final(cause) => {
                let why = format!("{cause:#}");
                state.out.get_or_insert(why.clone());
                format!("{why}; it isn't asked any more")
            }
            Trouble::Passing(cause) => {
                state.fruitless += 1;
                // What it did until now says nothing of what it'll do.
                state.rate = state.rate.map(|rate| rate / 2.0);
                if state.fruitless >= patience.fruitless_tries {
                    let why = format!("{} tries in a row brought nothing: {cause:#}", state.fruitless);
                    state.out.get_or_insert(why.clone());
                    return format!("{why}; it isn't asked any more");
                }
                let pause = patience.pause(state.fruitless);
                state.rests_until = Some(Instant::now() + pause);
                format!("{cause:#}; going on")
            }
        }
    }
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
