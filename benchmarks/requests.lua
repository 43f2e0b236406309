-- wrk script: POSTs the bodies of a file, one a line, in turn; prints what `load.py` reads. A number after the file
-- ends the load with so many answers.
local prepared, turn, answered = {}, 0, 0

function init(arguments)
  for body in io.lines(arguments[1]) do
    prepared[#prepared + 1] = wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, body)
  end
  local most = tonumber(arguments[2])
  if most then  -- only then: to be told of each answer costs wrk time
    response = function()
      answered = answered + 1
      if answered == most then
        wrk.thread:stop()
      end
    end
  end
end

function request()
  turn = turn % #prepared + 1
  return prepared[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\n", summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.timeout + errors.status,
    latency:percentile(50), latency:percentile(99)))
end
