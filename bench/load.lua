-- wrk: what LOAD names, on the ids in the file ITEMS, with a token from TOKEN and an Idempotency-Key on every write.
-- PAUSE (ms): how long a connection waits between two requests on average, for a load of less than all it can.
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

local function any() return items[math.random(#items)] end

local loads = {
  reservations = function()
    return "POST", "/reservations", '{"lines":[{"inventoryItemId":"' .. any() .. '","quantity":1}]}'
  end,
  operations = function()
    local list = {}
    for place = 1, 100 do list[place] = '{"type":"RECEIVE","inventoryItemId":"' .. any() .. '","quantity":1}' end
    return "POST", "/stock-operations", '{"operations":[' .. table.concat(list, ",") .. ']}'
  end,
  reads = function() return "GET", "/inventory-items/by-product/" .. any() end,
  -- One after the other, each thread its own half: whoever keeps fewer than there are has none of them any more.
  scan = function()
    place = (place or number - 1) + 2
    return "GET", "/inventory-items/by-product/" .. items[(place - 1) % #items + 1]
  end,
  availability = function() return "GET", "/inventory-items/" .. any() .. "/availability?quantity=2" end,
  projection = function() return "GET", "/products/" .. any() .. "/availability?quantity=900000000" end,
  receipts = function()
    local body = '{"type":"RECEIVE","inventoryItemId":"' .. any() .. '","quantity":1,"referenceNumber":"PO-1"}'
    return "POST", "/stock-operations", body
  end,
}

function init()
  items = {}
  for id in io.lines(os.getenv("ITEMS")) do items[#items + 1] = id end
  math.randomseed(os.time() + number)
  run, count = string.format("%d-%d-%d", os.time(), number, math.random(1e9)), 0
  load = loads[os.getenv("LOAD")]
  headers = { ["Authorization"] = "Bearer " .. os.getenv("TOKEN") }
end

function request()
  local method, path, body = load()
  if body then
    count = count + 1
    headers["Idempotency-Key"] = run .. "-" .. count
    headers["Content-Type"] = "application/json"
  end
  return wrk.format(method, path, headers, body)
end

local pause = tonumber(os.getenv("PAUSE") or "")
if pause then
  function delay() return math.floor(math.random() * 2 * pause + 0.5) end
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format('{"requests":%d,"seconds":%f,"p50_ms":%f,"p99_ms":%f,"refused":%d,"lost":%d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
