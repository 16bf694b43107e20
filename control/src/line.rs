//! A line in which one works for all who wait.
//!
//! Whoever finds nobody at work takes everybody who waits and does it for them; the first of those who come meanwhile is
//! told to do the next round. Everybody else is woken once, with what came of it: hundreds who would take a lock in turn,
//! just to find that their thing is done, take longer than what is done there.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

#[derive(Debug)]
pub(crate) struct Line<T, R>(Mutex<State<T, R>>);

#[derive(Debug)]
struct State<T, R> {
    waiting: Vec<Waiting<T, R>>,
    is_at_work: bool,
}

#[derive(Debug)]
struct Waiting<T, R> {
    item: T,
    told: mpsc::Sender<Told<R>>,
}

enum Told<R> {
    Done(R),
    /// It's one's turn to work.
    Work,
}

impl<T, R> Default for Line<T, R> {
    fn default() -> Self {
        Self(Mutex::new(State { waiting: Vec::new(), is_at_work: false }))
    }
}

impl<T, R> Line<T, R> {
    /// Has `item` done, by this caller or by another one that comes with the same `work`: up to `most` at once, what came of
    /// each in their order. `None` if there came nothing of it.
    pub(crate) fn have_done(&self, item: T, most: usize, work: impl FnOnce(Vec<T>) -> Vec<R>) -> Option<R> {
        let (told, tells) = mpsc::channel();
        let is_first = {
            let mut state = self.lock();
            state.waiting.push(Waiting { item, told });
            !mem::replace(&mut state.is_at_work, true)
        };
        if !is_first {
            match tells.recv().ok()? {
                Told::Done(result) => return Some(result),
                Told::Work => {}
            }
        }
        // Even if the work breaks off, the next one is told.
        let _turn = Turn(self);
        let round: Vec<_> = {
            let mut state = self.lock();
            let many = state.waiting.len().min(most.max(1));
            state.waiting.drain(..many).collect()
        };
        let (items, told): (Vec<T>, Vec<_>) = round.into_iter().map(|waiting| (waiting.item, waiting.told)).unzip();
        for (result, told) in work(items).into_iter().zip(told) {
            // Nobody goes away without having heard.
            let _ = told.send(Told::Done(result));
        }
        match tells.try_recv().ok()? {
            Told::Done(result) => Some(result),
            Told::Work => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T, R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Turn<'a, T, R>(&'a Line<T, R>);

impl<T, R> Drop for Turn<'_, T, R> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        match state.waiting.first() {
            Some(next) => drop(next.told.send(Told::Work)),
            None => state.is_at_work = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn everybody_gets_what_is_theirs_and_few_work() {
        let (line, rounds, at_work) = (Line::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |items: Vec<usize>| {
            assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
            assert!((1..=7).contains(&items.len()));
            rounds.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
            at_work.fetch_sub(1, Ordering::SeqCst);
            items.into_iter().map(|item| item * 2).collect()
        };
        thread::scope(|scope| {
            let all: Vec<_> = (0..100)
                .map(|n| {
                    scope.spawn({
                        let (line, work) = (&line, &work);
                        move || line.have_done(n, 7, work)
                    })
                })
                .collect();
            for (n, done) in all.into_iter().enumerate() {
                assert_eq!(done.join().expect("no panic"), Some(n * 2));
            }
        });
        assert!(rounds.load(Ordering::SeqCst) >= 100 / 7);
    }

    #[test]
    fn work_that_breaks_off_holds_nobody_up() {
        let line: Line<u8, u8> = Line::default();
        let broken = catch_unwind(AssertUnwindSafe(|| line.have_done(1, 9, |_| panic!("broken"))));
        assert!(broken.is_err());
        assert_eq!(line.have_done(2, 9, |_| vec![]), None, "nothing came of it");
        assert_eq!(line.have_done(3, 9, |items| items), Some(3));
    }
}
