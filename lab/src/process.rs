//! What a process of this host takes: memory and processor time, as the kernel counts them (proc_pid_status(5),
//! proc_pid_stat(5)).

use std::fs;

use anyhow::{Context, Result, bail};

/// A line of /proc/PID/status that is in kB, in MB.
pub(crate) fn memory(pid: u32, line: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = read(&path)?;
    let said = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')?.trim().strip_suffix(" kB"));
    let kib: f64 = said.and_then(|n| n.parse().ok()).with_context(|| format!("{path} has no {line}"))?;
    Ok(kib * 1024.0 / 1e6)
}

/// Of processor time, user and system, of a process without its children.
pub(crate) fn seconds(pid: u32) -> Result<f64> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything.
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    // The 14th and 15th field, and the third is the first here. In hundredths, on every machine there is.
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|ticks| ticks.parse().ok()).collect();
    let [user, system] = ticks[..] else { bail!("/proc/{pid}/stat has no times") };
    Ok((user + system) / 100.0)
}

/// The same with its children.
pub(crate) fn seconds_of_all(pid: u32) -> Result<f64> {
    let mut sum = seconds(pid)?;
    for child in read(&format!("/proc/{pid}/task/{pid}/children"))?.split_whitespace() {
        sum += seconds_of_all(child.parse().context("reading a child's pid")?)?;
    }
    Ok(sum)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}
