//! The process in the simulation's network: server, machines and operators. It's told line by line what to do next and
//! answers with a line, so that what takes long to set up can be measured in several ways.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::words::{count, list};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

use super::calls::Call;
use super::crowd::Crowd;
use super::drill::Drill;
use super::machine;
use super::operator::Operators;
use super::verdict::discrepancies;
use super::wire::believing;
use super::world::{World, own_usage};
use super::{Options, Report, files};

/// What is asked of a simulation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// All of it, from the first machine to the verdict.
    Whole(Options),
    /// A server and machines; answered when all of them wait.
    Machines(Options),
    /// A server and machines that have their tickets and go no further.
    AtTheGate(Options),
    /// Lets them go, and says how long the slower ones took to be registered, in seconds.
    Burst,
    /// The server's resident memory, in MB.
    Memory,
    /// How much of a processor the server takes for so long, in percent.
    Processor {
        seconds: u64,
    },
    /// Allocations in a second.
    Allocate {
        many: usize,
        clients: usize,
    },
    /// How long it takes the slower ones to have their order once it's given, in milliseconds.
    Orders {
        many: usize,
        clients: usize,
    },
    /// In milliseconds: the worst of so many.
    List {
        times: usize,
    },
    Capacity {
        times: usize,
    },
    /// How long it takes after the election of a new leader until an allocation is answered, in seconds.
    Failover {
        clients: usize,
    },
    /// That everything is where it should be.
    Verify,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Figure(f64),
    Whole(Box<Report>),
    Failed(String),
}

/// The hidden `drophammer lab simulate-inside`: until nobody asks any more.
pub fn inside() -> Result<()> {
    let runtime = Builder::new_multi_thread().enable_all().build().context("starting the simulation's runtime")?;
    let mut running = None;
    for line in std::io::stdin().lock().lines() {
        let ask = serde_json::from_str(&line.context("reading what to simulate")?).context("understanding it")?;
        let answer = do_this(&runtime, &mut running, ask).unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
        let mut text = serde_json::to_string(&answer).context("writing an answer")?;
        text.push('\n');
        std::io::stdout().write_all(text.as_bytes()).context("answering")?;
    }
    // Thousands of machines would otherwise be waited for.
    runtime.shutdown_background();
    Ok(())
}

fn do_this(runtime: &Runtime, running: &mut Option<Simulation>, ask: Ask) -> Result<Answer> {
    let options = match &ask {
        Ask::Whole(options) | Ask::Machines(options) | Ask::AtTheGate(options) => Some(options.clone()),
        _ => None,
    };
    if let Some(options) = options {
        // One server at a time has the address.
        drop(running.take());
        let is_open = !matches!(ask, Ask::AtTheGate(_));
        *running = Some(Simulation::start(runtime, options, is_open)?);
    }
    let simulation = running.as_mut().context("nothing is simulated yet")?;
    let figure = match ask {
        Ask::Whole(_) => return Ok(Answer::Whole(Box::new(simulation.whole(runtime)?))),
        Ask::Machines(_) => {
            runtime.block_on(simulation.crowd.all_wait());
            simulation.must_wait()?;
            0.0
        }
        Ask::AtTheGate(options) => {
            let crowd = &simulation.crowd;
            let all = options.machines as usize;
            runtime.block_on(crowd.until(|| crowd.at_the_gate() == all));
            ensure!(crowd.at_the_gate() == all, "only {} of {all} machines have a ticket", crowd.at_the_gate());
            0.0
        }
        Ask::Burst => simulation.burst(runtime)?,
        Ask::Memory => simulation.world.usage()?.resident_mb,
        Ask::Processor { seconds } => simulation.processor(Duration::from_secs(seconds))?,
        Ask::Allocate { many, clients } => simulation.allocate(runtime, many, clients)?,
        Ask::Orders { many, clients } => {
            simulation.crowd.calls.forget();
            simulation.allocate(runtime, many, clients)?;
            runtime.block_on(simulation.crowd.all_ordered());
            let p99 = simulation.crowd.calls.p99(Call::OrderGiven).context("no machine had an order")?;
            p99.as_secs_f64() * 1e3
        }
        Ask::List { times } => simulation.worst_of(Call::List, |operators| runtime.block_on(operators.list(times)))?,
        Ask::Capacity { times } => {
            simulation.worst_of(Call::Capacity, |operators| runtime.block_on(operators.capacity(times)))?
        }
        Ask::Failover { clients } => simulation.failover(runtime, clients)?,
        Ask::Verify => {
            runtime.block_on(simulation.crowd.all_settled());
            let wrong = simulation.discrepancies(runtime)?;
            ensure!(wrong.is_empty(), "{}", list(wrong.iter().take(5)));
            0.0
        }
    };
    Ok(Answer::Figure(figure))
}

struct Simulation {
    crowd: Arc<Crowd>,
    operators: Arc<Operators>,
    world: World,
    began: Instant,
}

/// Of a machine that nobody knew would be on its way.
const UNANSWERED: Duration = Duration::from_secs(30);
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
/// How often lists are asked for in a whole run.
const LOOKS: usize = 30;
/// What an election takes, and as long again.
const FAILOVER: Duration = Duration::from_secs(15);
const BEFORE_FAILOVER: Duration = Duration::from_secs(2);

impl Simulation {
    fn start(runtime: &Runtime, options: Options, is_open: bool) -> Result<Self> {
        files::raise(options.machines)?;
        let world = World::start(options.etcd, options.drill == Some(Drill::ClockJumps))?;
        let ca = world.ca()?;
        let tls = believing(&ca)?;
        let crowd = Arc::new(Crowd::new(options, ca, tls, is_open));
        let operators = Arc::new(Operators::new(Arc::clone(&crowd), world.admin_token()?));
        runtime.block_on(operators.declare())?;
        let began = Instant::now();
        let _inside = runtime.enter();
        machine::all(&crowd).for_each(|life| drop(tokio::spawn(life)));
        Ok(Self { crowd, operators, world, began })
    }

    fn whole(&mut self, runtime: &Runtime) -> Result<Report> {
        let options = self.crowd.options.clone();
        let (crowd, operators) = (Arc::clone(&self.crowd), Arc::clone(&self.operators));
        self.meanwhile(|_| {
            runtime.block_on(crowd.all_wait());
            Ok(())
        })?;
        self.world.must_run()?;
        let waiting_cpu_percent = match options.wait_s {
            0 => None,
            seconds => Some(self.processor(Duration::from_secs(seconds))?),
        };
        let while_waiting = self.world.usage()?;
        runtime.block_on(async {
            self.operators.list(LOOKS).await?;
            self.operators.capacity(LOOKS).await
        })?;
        let waiting = self.crowd.tally().get("waiting").copied().unwrap_or(0);
        let many = options.machines as usize * usize::from(options.allocate) / 100;
        let many = many.min(waiting);
        self.meanwhile(|is_over| match options.drill {
            None => runtime.block_on(operators.allocate(many, options.clients.into())).map(drop),
            Some(_) => runtime.block_on(operators.allocate_slowly(many, is_over)),
        })?;
        runtime.block_on(self.crowd.all_settled());
        self.world.must_run()?;
        let discrepancies = self.lasting_discrepancies(runtime)?;
        Ok(Report {
            machines: options.machines,
            etcd: options.etcd,
            took_s: self.began.elapsed().as_secs_f64(),
            ended: self.crowd.tally().into_iter().map(|(stage, many)| (stage.to_owned(), many)).collect(),
            calls: self.crowd.calls.figures(),
            waiting_resident_mb: while_waiting.resident_mb,
            waiting_cpu_percent,
            server: self.world.usage()?,
            simulator: own_usage()?,
            discrepancies,
        })
    }

    /// Does `work` while the drill strikes, if there is one. It's told whether that is over.
    fn meanwhile(&mut self, work: impl FnOnce(&AtomicBool) -> Result<()>) -> Result<()> {
        let Some(drill) = self.crowd.options.drill else { return work(&AtomicBool::new(true)) };
        let (world, is_over) = (&mut self.world, AtomicBool::new(false));
        thread::scope(|s| {
            let strike = s.spawn(|| {
                let struck = drill.strike(world);
                is_over.store(true, Ordering::Relaxed);
                struck
            });
            let worked = work(&is_over);
            match strike.join() {
                Ok(struck) => struck.with_context(|| format!("the drill {drill}")).and(worked),
                Err(_) => bail!("the drill {drill} panicked"),
            }
        })
    }

    /// An allocation whose answer was lost may be on its way to a machine that nobody waited for.
    fn lasting_discrepancies(&self, runtime: &Runtime) -> Result<Vec<String>> {
        let since = Instant::now();
        loop {
            let wrong = self.discrepancies(runtime)?;
            let unanswered = !self.operators.asked().unanswered.is_empty();
            if wrong.is_empty() || !unanswered || since.elapsed() > UNANSWERED {
                return Ok(wrong);
            }
            thread::sleep(BETWEEN_LOOKS);
            runtime.block_on(self.crowd.all_settled());
        }
    }

    fn discrepancies(&self, runtime: &Runtime) -> Result<Vec<String>> {
        let listed = runtime.block_on(self.operators.all_machines())?;
        let mut wrong = discrepancies(&self.crowd.own(), &listed, &self.operators.asked());
        wrong.extend(self.world.complaints().into_iter().map(|line| format!("the server's log says: {line}")));
        Ok(wrong)
    }

    fn must_wait(&mut self) -> Result<()> {
        self.world.must_run()?;
        let tally = self.crowd.tally();
        let all = self.crowd.options.machines as usize;
        ensure!(
            tally.get("waiting") == Some(&all),
            "not all of {} wait: {}",
            count(all, "machine"),
            list(tally.iter().map(|(stage, many)| format!("{many} {stage}")))
        );
        Ok(())
    }

    /// How long it took them to be registered; and none is lost.
    fn burst(&mut self, runtime: &Runtime) -> Result<f64> {
        self.crowd.calls.forget();
        self.crowd.open();
        runtime.block_on(self.crowd.all_wait());
        self.must_wait()?;
        let p99 = self.crowd.calls.p99(Call::Registered).context("no machine was registered")?;
        Ok(p99.as_secs_f64())
    }

    fn processor(&self, length: Duration) -> Result<f64> {
        let (before, since) = (self.world.usage()?.cpu_s, Instant::now());
        thread::sleep(length);
        Ok((self.world.usage()?.cpu_s - before) / since.elapsed().as_secs_f64() * 100.0)
    }

    fn allocate(&self, runtime: &Runtime, many: usize, clients: usize) -> Result<f64> {
        let before = self.operators.asked().given.len();
        let took = runtime.block_on(self.operators.allocate(many, clients))?;
        let given = self.operators.asked().given.len() - before;
        ensure!(given == many, "only {given} of {many} allocations were answered with a machine");
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        Ok(many as f64 / took.as_secs_f64())
    }

    /// In milliseconds.
    fn worst_of(&self, call: Call, ask: impl FnOnce(&Operators) -> Result<()>) -> Result<f64> {
        self.crowd.calls.forget();
        ask(&self.operators)?;
        let p99 = self.crowd.calls.p99(call).context("nothing was answered")?;
        Ok(p99.as_secs_f64() * 1e3)
    }

    /// Kills the leader of etcd in the middle of many allocations.
    fn failover(&mut self, runtime: &Runtime, clients: usize) -> Result<f64> {
        let Some(etcd) = &mut self.world.etcd else { bail!("there is no etcd whose leader could be killed") };
        let stop = Arc::new(AtomicBool::new(false));
        let load = runtime.spawn({
            let (operators, stop) = (Arc::clone(&self.operators), Arc::clone(&stop));
            async move { operators.allocate_until(stop, clients).await }
        });
        thread::sleep(BEFORE_FAILOVER);
        let leader = etcd.leader()?;
        let killed = Instant::now();
        etcd.kill(leader);
        let elected = loop {
            if etcd.leader().is_ok() {
                break Instant::now();
            }
            ensure!(killed.elapsed() < FAILOVER, "etcd has no new leader after {} s", FAILOVER.as_secs());
            thread::sleep(Duration::from_millis(20));
        };
        while self.operators.first_answer_after(elected).is_none() && elected.elapsed() < FAILOVER {
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(BEFORE_FAILOVER);
        stop.store(true, Ordering::Relaxed);
        runtime.block_on(load).context("the load broke")??;
        etcd.run(leader)?;
        etcd.wait_until_ready()?;
        let first = self.operators.first_answer_after(elected);
        let first = first.with_context(|| format!("nothing was allocated within {} s", FAILOVER.as_secs()))?;
        Ok((first - elected).as_secs_f64())
    }
}
