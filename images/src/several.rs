//! A few things at a time, each with a verdict.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

use anyhow::{Result, anyhow};

/// Does `work` on every one of `items`, `at_once` of them at a time. After a failure no further one is begun; what fails
/// is said of all that had been.
pub(crate) fn each<T: Sync>(items: &[T], at_once: NonZeroUsize, work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = Mutex::new(items.iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_once.get().min(items.len()) {
            scope.spawn(|| {
                loop {
                    let item = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(item) = item else { return };
                    if let Err(error) = work(item) {
                        *next.lock().unwrap_or_else(PoisonError::into_inner) = [].iter();
                        failures.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => {
            let said: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
            Err(anyhow!("{}", said.join("; and ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_is_said() {
        let at_once = NonZeroUsize::new(2).expect("not zero");
        for (name, bad, want) in
            [("none", vec![], ""), ("one", vec![3], "3 is bad"), ("both at once", vec![0, 1], "0 is bad; and 1 is bad")]
        {
            let both = std::sync::Barrier::new(2);
            let done = each(&[0, 1, 2, 3], at_once, |number| {
                if *number < 2 {
                    both.wait();
                }
                if bad.contains(number) { Err(anyhow!("{number} is bad")) } else { Ok(()) }
            });
            let said = done.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(said == want || said == "1 is bad; and 0 is bad" && bad.len() == 2, "{name}: {said}");
        }
        assert!(each(&[] as &[u8], at_once, |_| Err(anyhow!("never"))).is_ok());
    }
}
