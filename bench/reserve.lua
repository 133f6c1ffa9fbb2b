-- wrk: one-unit reservations of the items listed in the file ITEMS, with a token from TOKEN and a key on every request.
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

function init()
  items = {}
  for id in io.lines(os.getenv("ITEMS")) do items[#items + 1] = id end
  math.randomseed(os.time() + number)
  run, count = string.format("%d-%d-%d", os.time(), number, math.random(1e9)), 0
  headers = { ["Authorization"] = "Bearer " .. os.getenv("TOKEN"), ["Content-Type"] = "application/json" }
end

function request()
  count = count + 1
  headers["Idempotency-Key"] = run .. "-" .. count
  local item = items[math.random(#items)]
  return wrk.format("POST", "/reservations", headers, '{"lines":[{"inventoryItemId":"' .. item .. '","quantity":1}]}')
end

function done(summary)
  print(string.format("not 2xx: %d, socket errors: %d", summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
