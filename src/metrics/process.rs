//! What runs, and what it takes of its machine: read when it is asked for.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, IntGaugeVec};

use super::{Registering, gauges, register};

/// Registers the build and the process.
pub(super) fn register_all(r: &mut Registering) -> Result<(), prometheus::Error> {
    let help = "1, with the version and whether this build has the Temporal side.";
    let build: IntGaugeVec = gauges(r, "crossover_build_info", help, &["version", "temporal"])?;
    let temporal = if cfg!(feature = "temporal") { "yes" } else { "no" };
    build.with_label_values(&[env!("CARGO_PKG_VERSION"), temporal]).set(1);
    register(r, Process::new()?).map(drop)
}

/// The names are those that Prometheus' own libraries have for them.
#[derive(Clone)]
struct Process {
    cpu: Counter,
    resident: Gauge,
    virtual_size: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    threads: Gauge,
    started: Gauge,
}

impl Process {
    fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            cpu: Counter::new("process_cpu_seconds_total", "Seconds of processor time that this process has used.")?,
            resident: Gauge::new("process_resident_memory_bytes", "Bytes of memory that this process holds.")?,
            virtual_size: Gauge::new("process_virtual_memory_bytes", "Bytes of address space that it has mapped.")?,
            open_fds: Gauge::new("process_open_fds", "Files and sockets that it has open.")?,
            max_fds: Gauge::new("process_max_fds", "The most files and sockets that it may have open.")?,
            threads: Gauge::new("process_threads", "Threads that it runs.")?,
            started: Gauge::new("process_start_time_seconds", "When it started, in seconds since 1970.")?,
        })
    }

    fn parts(&self) -> [&dyn Collector; 7] {
        let Self { cpu, resident, virtual_size, open_fds, max_fds, threads, started } = self;
        [cpu, resident, virtual_size, open_fds, max_fds, threads, started]
    }

    /// What can't be read keeps its last value.
    #[cfg(target_os = "linux")]
    fn look(&self) -> procfs::ProcResult<()> {
        use procfs::WithCurrentSystemInfo;
        let process = procfs::process::Process::myself()?;
        let stat = process.stat()?;
        let cpu = (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64;
        self.cpu.inc_by((cpu - self.cpu.get()).max(0.0));
        self.resident.set(stat.rss_bytes().get() as f64);
        self.virtual_size.set(stat.vsize as f64);
        self.threads.set(stat.num_threads as f64);
        let booted = procfs::boot_time_secs()? as f64;
        self.started.set(booted + stat.starttime as f64 / procfs::ticks_per_second() as f64);
        self.open_fds.set(process.fd_count()? as f64);
        if let procfs::process::LimitValue::Value(most) = process.limits()?.max_open_files.soft_limit {
            self.max_fds.set(most as f64);
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn look(&self) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Err(error) = self.look() {
            tracing::debug!(%error, "the process can't be read in /proc; its metrics keep their last values");
        }
        self.parts().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::Metrics;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_process_is_read_when_it_is_asked_for() {
        let text = Metrics::new().unwrap().render().unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6, "{text}");
        assert!(value("process_open_fds") >= 3.0 && value("process_threads") >= 1.0, "{text}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..3_600.0).contains(&age), "{age}");
    }
}
